"""Rounding between the steps of a fused kernel, as if each step were stored.

The interpreter cuts float32 off where a GPU rounds it to bf16; ``UPCAST`` rounds there, and only
there.
"""

import triton
import triton.language as tl


@triton.jit
def narrow(x, TYPE: tl.constexpr, UPCAST: tl.constexpr):
    """float32 in the dtype TYPE, rounded to nearest, ties to even."""
    if UPCAST:
        bits = x.to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        x = (bits & -65536).to(tl.float32, bitcast=True)
    return x.to(TYPE)


@triton.jit
def rounded(x, TYPE: tl.constexpr, UPCAST: tl.constexpr):
    """float32 with the value that storing it in the dtype TYPE would leave."""
    return narrow(x, TYPE, UPCAST).to(tl.float32)
