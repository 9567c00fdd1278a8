"""Compile kernels for an H100 or H200 on a machine without a GPU, and read what came out.

Registers, spills, shared memory and tensor-core instructions are facts of the compiled code, so
the tests check every shipped form of every kernel without a GPU. Needs triton, which brings the
assembler and the disassembler, and must not run under ``TRITON_INTERPRET``.
"""

from __future__ import annotations

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
SHARED_MEMORY_LIMIT = 227 * 1024
"""Bytes of shared memory one block may have on an H100 or H200."""


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
    local_accesses: int  # instructions that reach spilled registers
    shared_memory: int  # bytes per block
    tensor_core: int  # matrix instructions, of warps (HMMA) or of warp groups (HGMMA)
    warp_group: int  # of these, HGMMA
    warps: int  # per block, those of the producer included where warps are specialised
    instructions: int


def compile_variant(variant: Variant) -> Compiled:
    """Compile for sm_90a and disassemble."""
    compiled = triton.compile(
        _source(variant),
        target=GPUTarget("cuda", HOPPER, 32),
        options={"num_warps": variant.num_warps, "num_stages": variant.num_stages},
    )
    usage, code = _disassemble(compiled.asm["cubin"])
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    groups = len(re.findall(r"\bHGMMA", code))
    return Compiled(
        registers=int(found[1]),
        stack=int(found[2]),
        local_accesses=len(re.findall(r"\b(?:STL|LDL)\b", code)),
        shared_memory=compiled.metadata.shared,
        tensor_core=groups + len(re.findall(r"\bHMMA", code)),
        warp_group=groups,
        warps=compiled.metadata.num_warps,
        instructions=len(re.findall(r"/\*[0-9a-f]{4,}\*/", code)),
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


def _disassemble(cubin: bytes) -> tuple[str, str]:
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return _run(tools / "cuobjdump", "-res-usage", file.name), _run(
            tools / "nvdisasm", "-c", file.name
        )


def _run(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True)
    return done.stdout
