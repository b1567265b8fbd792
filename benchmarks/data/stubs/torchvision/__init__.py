"""Stands in for torchvision on the peers' path only.

mosaicml-streaming imports two of its names for vision datasets. Its published builds are tied to other builds of torch
than the one installed here and fail on import, and nothing that is measured here uses them.
"""
