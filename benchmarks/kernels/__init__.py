"""Kernels beside their floors, their PyTorch chains, and the parts they would run on."""
