"""Attention with per-sequence control tables: the contract, the reference, the Triton kernels."""
