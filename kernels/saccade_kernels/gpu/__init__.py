"""The Triton kernels, how they are launched, and what checks them without a GPU."""
