"""Compile kernels for a GPU on a machine without one, and read what came out.

Registers, spills, shared memory and tensor-core instructions are facts of the compiled code, so
every shipped form of every kernel is checked without a GPU (benchmarks/compiled.py). Needs triton,
which brings the assembler, and must not run under ``TRITON_INTERPRET``.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from saccade_kernels.gpu.device import ASSUMED
from saccade_kernels.gpu.instructions import Loop, loops_of


@dataclass(frozen=True)
class Variant:
    """One compiled form of a kernel.

    ``types`` has triton's type of each argument ("*bf16", "i32", "fp32"), or None for a tensor
    that this form does not take. Both mappings may name more than the kernel's arguments.
    """

    name: str
    kernel: Any
    types: Mapping[str, str | None]
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int
    max_registers: int = 0  # of a thread; 0: as many as the compiler likes


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a variant."""

    registers: int  # per thread
    stack: int  # bytes per thread; anything but 0 is a spill or a local array
    shared_memory: int  # bytes per block
    warp_group_products: int  # wgmma instructions
    serialised: bool  # the assembler makes each of them wait for the one before
    warp_products: int  # mma instructions
    warps: int  # per block, those of the producer included where warps are specialised
    tensor_memory: int  # columns, of 512 that a multiprocessor of capability 10.0 has
    block_products: int  # tcgen05.mma instructions
    loops: tuple[Loop, ...]  # empty unless asked for


def compile_variant(
    variant: Variant, capability: int = ASSUMED, count_loops: bool = False
) -> Compiled:
    """Compile for one capability, whatever Triton's cache holds: the assembler's words are needed.

    Triton adds what only that architecture has: 90 is sm_90a.
    """
    with _assembler_log() as log:
        compiled = triton.compile(
            _source(variant),
            target=GPUTarget("cuda", capability, 32),
            options=_options(variant),
        )
    words, code = log.getvalue(), compiled.asm["ptx"]
    groups = len(re.findall(r"\bwgmma\.mma_async", code))
    return Compiled(
        registers=_noted(r"Used (\d+) registers", words),
        stack=_noted(r"(\d+) bytes stack frame", words),
        shared_memory=compiled.metadata.shared,
        warp_group_products=groups,
        serialised=groups > 0 and "(C751" in words,  # warnings C7510 to C7519
        warp_products=len(re.findall(r"\bmma\.sync", code)),
        warps=compiled.metadata.num_warps,
        tensor_memory=getattr(compiled.metadata, "tmem_size", 0),
        block_products=len(re.findall(r"\btcgen05\.mma\.", code)),
        loops=tuple(loops_of(compiled.asm["cubin"])) if count_loops else (),
    )


def _options(variant: Variant) -> dict[str, int]:
    limit = {"maxnreg": variant.max_registers} if variant.max_registers else {}
    return {"num_warps": variant.num_warps, "num_stages": variant.num_stages, **limit}


def _source(variant: Variant) -> ASTSource:
    """As a launch would specialise it: pointers on 16 bytes, unless the kernel says otherwise."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for index, parameter in enumerate(variant.kernel.params):
        name = parameter.name
        if parameter.is_constexpr or variant.types[name] is None:
            signature[name] = "constexpr"
            constants[name] = variant.constants.get(name)
            continue
        kind = variant.types[name]
        assert kind is not None
        signature[name] = kind
        if kind.startswith("*") and not parameter.do_not_specialize_on_alignment:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=variant.kernel, signature=signature, constexprs=constants, attrs=attributes)


@contextmanager
def _assembler_log() -> Iterator[io.StringIO]:
    """What ptxas says meanwhile. Triton prints it if asked to, and only when it assembles."""
    with knobs.nvidia.scope(), knobs.compilation.scope(), redirect_stdout(io.StringIO()) as log:
        knobs.nvidia.dump_ptxas_log = True
        knobs.compilation.always_compile = True
        yield log


def _noted(pattern: str, words: str) -> int:
    """The largest number that the assembler notes of any of the form's functions."""
    found = re.findall(pattern, words)
    assert found, words
    return max(map(int, found))
