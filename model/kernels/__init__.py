"""Triton kernels. Each computes what an operation of `model` defines in plain PyTorch; `dispatch` chooses between them.

Nothing here but `dispatch` may be imported where triton is not installed.
"""
