"""Compile kernels for an H100 or H200 on a machine without a GPU, and read what came out.

Registers, spills, shared memory and tensor-core instructions are facts of the compiled code, so
the tests check every shipped form of every kernel without a GPU. Needs triton, which brings the
assembler, and must not run under ``TRITON_INTERPRET``.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

HOPPER = 90


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


def compile_variant(variant: Variant) -> Compiled:
    """Compile for sm_90a."""
    compiled = triton.compile(
        _source(variant),
        target=GPUTarget("cuda", HOPPER, 32),
        options={"num_warps": variant.num_warps, "num_stages": variant.num_stages},
    )
    registers, stack = _usage(compiled.asm["cubin"])
    code = compiled.asm["ptx"]
    groups = len(re.findall(r"\bwgmma\.mma_async", code))
    return Compiled(
        registers=registers,
        stack=stack,
        shared_memory=compiled.metadata.shared,
        warp_group_products=groups,
        serialised=groups > 0 and _is_serialised(code),
        warp_products=len(re.findall(r"\bmma\.sync", code)),
        warps=compiled.metadata.num_warps,
    )


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


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes of a thread, as the assembler noted them."""
    noted = _run("cuobjdump", cubin, "-res-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+)", noted)
    assert found is not None, noted
    return int(found[1]), int(found[2])


def _is_serialised(code: str) -> bool:
    """The assembler's warnings C7510 to C7519, which Triton does not pass on."""
    return "(C751" in _run("ptxas", code.encode(), "-v", "--gpu-name=sm_90a", "-o", os.devnull)


def _run(tool: str, content: bytes, *options: str) -> str:
    """All that one of the tools in Triton's package says about a file."""
    path = Path(triton.__file__).parent / "backends/nvidia/bin" / tool
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        command = [str(path), *options, file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
