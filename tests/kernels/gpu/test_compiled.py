"""Every form of every kernel, compiled for an H100 or H200 on a machine without a GPU.

With the triton of constraints.txt, and with the older one of constraints.older.txt. All forms take
the two of them some ten minutes. So what they made of each is recorded (`make compiled`) with a
digest of what it is made of: the records must be of today's code, a sample with every kernel in it
is compiled again, and `pytest -m long` compiles everything.
"""

import json
import re
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton.backends.nvidia")

from saccade_kernels.gpu.device import running
from saccade_kernels.gpu.tuning import decode_config
from saccade_testing.compilers import COMPILERS, OLDER, PINNED, ROOT, run

SCRIPT = "compiled.py"
FOLDERS = ("kernels", "benchmarks")
SHARED_MEMORY_LIMIT = 227 * 1024
REGISTERS_OF_AN_SM = 65536


WIDE_GRADIENTS = {
    **{f"residual_gradient-d{d}-{t}": 80 for d in (5376, 8192) for t in ("bf16", "fp16")},
    "residual_gradient-d8192-fp32": 88,
}
"""Back through residual edits of the widest models, which few rows do."""

KNOWN_SPILLS = {
    PINNED: {
        **WIDE_GRADIENTS,
        "decode-d128-g7-fp32-plain": 16,
        "decode-d256-g2-bf16-plain-capped": 24,
        "prefill-d80-bf16-edited": 24,
        "prefill-d96-bf16-edited": 24,
        "prefill-d128-bf16-edited": 16,
        "prefill-d80-fp16-edited": 24,
        "prefill-d96-fp16-edited": 24,
        "prefill-d128-fp16-edited": 16,
        "prefill-d64-fp32-edited": 8,
        "prefill-d64-fp32-masses": 8,
        "prefill-d64-fp32-scores": 16,
        "prefill-d80-fp32-edited": 32,
        "prefill-d96-fp32-edited": 32,
        "prefill-d128-fp32-edited": 32,
        "prefill-d128-fp32-masses": 32,
        "prefill-d128-bf16-values-capped": 8,
        "prefill-d128-bf16-scores-capped": 8,
        "prefill-d128-bf16-edited-emit": 8,
        "prefill-d128-bf16-edited-capped-emit": 24,
        "prefill-d128-bf16-edited-capped": 24,
        "prefill-d256-bf16-values-capped": 48,
        "saliency16-d256-g7-c8-fp32": 32,
        "class16-d256-g2-c4-bf16-capped": 8,
    },
    OLDER: {
        **WIDE_GRADIENTS,
        "decode-d128-g4-bf16-edited": 8,
        "decode-d128-g8-bf16-edited": 8,
        "decode-d128-g7-fp32-plain": 16,
        "decode-d256-g2-bf16-plain-capped": 16,
        "prefill-d80-bf16-edited": 32,
        "prefill-d80-bf16-values": 8,
        "prefill-d80-bf16-scores": 8,
        "prefill-d96-bf16-edited": 32,
        "prefill-d96-bf16-values": 8,
        "prefill-d96-bf16-scores": 8,
        "prefill-d128-bf16-edited": 32,
        "prefill-d128-bf16-values": 8,
        "prefill-d128-bf16-scores": 8,
        "prefill-d256-bf16-values": 32,
        "prefill-d80-fp16-edited": 32,
        "prefill-d80-fp16-values": 8,
        "prefill-d80-fp16-scores": 8,
        "prefill-d96-fp16-edited": 32,
        "prefill-d96-fp16-values": 8,
        "prefill-d96-fp16-scores": 8,
        "prefill-d128-fp16-edited": 32,
        "prefill-d128-fp16-values": 8,
        "prefill-d128-fp16-scores": 8,
        "prefill-d256-fp16-values": 32,
        "prefill-d64-fp32-edited": 8,
        "prefill-d64-fp32-masses": 24,
        "prefill-d64-fp32-values": 8,
        "prefill-d64-fp32-scores": 8,
        "prefill-d80-fp32-edited": 32,
        "prefill-d80-fp32-masses": 16,
        "prefill-d96-fp32-edited": 32,
        "prefill-d96-fp32-masses": 16,
        "prefill-d128-fp32-edited": 40,
        "prefill-d128-bf16-values-capped": 8,
        "prefill-d128-bf16-scores-capped": 8,
        "prefill-d128-bf16-edited-capped-emit": 8,
        "prefill-d128-bf16-edited-capped": 16,
        "prefill-d128-bf16-values-per-head": 8,
        "prefill-d256-bf16-values-per-head": 32,
        "prefill-split-d80-fp32-c4": 8,
        "prefill-split-d96-fp32-c4": 8,
        "prefill-split-d256-fp32-c4": 2208,
        "class16-d256-g7-c0-fp32": 16,
        "class16-d256-g7-c8-fp32": 16,
        "saliency16-d256-g7-c8-fp32": 128,
    },
}
"""Bytes of stack of a thread, by compiler. No family that is served caps its scores, and single
precision serves no purpose but to be right. Served in half precision are, with the pinned compiler,
the general form of edited prefills ("edited", of the batch-invariant mode, and where masses are
emitted), and with the older one some more bytes: edited decodes of groups of 4 and 8, and the
values of edited prefills."""

SAMPLE = (
    "moved-h28-per-head",
    "residual-d4096-bf16",
    "parts-v152064-bf16",
    "contrast-v152064-bf16",
    "mask-v152064",
    "divergence-v152064-bf16",
    "norm-d4096-bf16-add",
    "rotation-d128-bf16-axes",
    "rope-d128-bf16-normed",
    "gate-silu-14336-bf16",
    "norm_gradient-d4096-bf16-add",
    "gate_gradient-silu-14336-bf16",
    "rope_gradient-d128-bf16-normed",
    "residual_gradient-d4096-bf16",
    "share",
    "score-d4096-bf16",
    "settle",
    "page-lists",
    "find-d128-g7-bf16",
    "settle-prompts",
    "page-classes",
    "decode-d128-g1-bf16-plain",
    "decode-d128-g1-bf16-edited",
    "decode-d128-g7-bf16-edited",
    "decode-d128-g7-bf16-edited-emit",
    "decode-d128-g7-c4-bf16-per-head",
    "decode-d256-g7-bf16-edited",
    "merge-d128-g7-bf16-edited",
    "prefill-d128-bf16-plain",
    "prefill-split-d128-bf16-c4",
    "merge-rows-d128-bf16-c4",
    "prefill-d128-bf16-plain-beside",
    "prefill-d128-bf16-plain-beside-specialised",
    "prefill-d128-bf16-edited",
    "prefill-d128-bf16-masses-per-head",
    "prefill-d128-bf16-values-per-head",
    "prefill-d128-bf16-scores",
    "class32-d128-g7-c8-bf16",
    "class32-d128-g7-c4-bf16-per-head",
    "offset8-d128-g7-c8-bf16",
    "saliency16-d128-g7-c4-bf16",
    "gradient8-d128-g7-c4-bf16",
    "column16-d128-g7-bf16-edited",
    "row16-d128-g7-bf16-edited",
    "product-few-llava-output-bf16",
    "product-invariant-llava-gates-bf16",
    "read",
)
"""With every kernel, and what is served most."""


def record(compiler: str) -> Path:
    return ROOT / f"benchmarks/results/compiled-triton-{compiler}.json"


@cache
def read(compiler: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(record(compiler).read_text())
    return document


def forms(compiler: str) -> dict[str, Any]:
    """The recorded facts of every form, by name."""
    found: dict[str, Any] = read(compiler)["forms"]
    return found


def jitted(folder: str) -> set[str]:
    """Names of the Triton functions that a folder's source defines."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / folder).rglob("*.py")))
    return set(re.findall(r"^@triton\.jit.*\ndef (\w+)", text, re.MULTILINE))


@pytest.fixture(scope="module")
def today() -> dict[str, Any]:
    """Digest of every form of today's code, and the names of what it is made of."""
    listed: dict[str, Any] = json.loads(run(PINNED, SCRIPT, "--list"))
    return listed


@COMPILERS
def test_the_record_is_of_todays_code(compiler: str, today: dict[str, Any]) -> None:
    """Otherwise: make compiled."""
    assert read(compiler)["versions"]["triton"] == compiler
    recorded = {name: facts["digest"] for name, facts in forms(compiler).items()}
    assert recorded == {name: form["digest"] for name, form in today.items()}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("compiler", [PINNED, pytest.param(OLDER, marks=pytest.mark.long)])
def test_a_sample_is_compiled_to_what_is_recorded(compiler: str) -> None:
    found = json.loads(run(compiler, SCRIPT, "--only", *SAMPLE))
    assert found == {name: forms(compiler)[name] for name in SAMPLE}


def test_the_sample_has_every_triton_function(today: dict[str, Any]) -> None:
    everywhere = {name for form in today.values() for name in form["code"]}
    assert {name for sampled in SAMPLE for name in today[sampled]["code"]} == everywhere
    names = {name.split(".")[-1] for name in everywhere}
    assert names >= {function for folder in FOLDERS for function in jitted(folder)}


@pytest.mark.long
@pytest.mark.timeout(3600)
@COMPILERS
def test_everything_is_compiled_to_what_is_recorded(compiler: str, tmp_path: Path) -> None:
    run(compiler, SCRIPT, "--all", OUT=str(tmp_path))
    found = json.loads((tmp_path / record(compiler).name).read_text())
    assert found == read(compiler)


@COMPILERS
def test_what_spills_is_known(compiler: str) -> None:
    stacks = {name: facts["stack"] for name, facts in forms(compiler).items() if facts["stack"]}
    angles = {name: stacks.pop(name) for name in list(stacks) if name.startswith("rotation-")}
    assert stacks == KNOWN_SPILLS[compiler]
    # No spill: the remainder of an angle above 1e5 by pi / 2, as torch's own cosine takes it.
    assert {*angles.values()} == {32}


@COMPILERS
def test_products_of_warp_groups_overlap(compiler: str) -> None:
    """A loop may be written so that each waits for the one before; only a warning says so."""
    grouped = {n: facts for n, facts in forms(compiler).items() if facts["warp_group_products"]}
    assert len(grouped) > 20
    assert not [name for name, facts in grouped.items() if facts["serialised"]]


@COMPILERS
def test_shared_memory_and_registers_fit(compiler: str) -> None:
    for name, facts in forms(compiler).items():
        assert facts["shared_memory"] <= SHARED_MEMORY_LIMIT, name
        assert facts["registers"] * 32 * facts["warps"] <= REGISTERS_OF_AN_SM, name


@COMPILERS
def test_products_of_halves_run_on_tensor_cores(compiler: str) -> None:
    attending = ("decode-", "prefill-", "class", "saliency", "column", "row", "product")
    of_halves = {
        name: facts["warp_products"] + facts["warp_group_products"]
        for name, facts in forms(compiler).items()
        if name.startswith(attending) and facts["halves"]
    }
    assert len(of_halves) > 100
    assert 0 not in of_halves.values()


def test_decode_covers_the_shapes(today: dict[str, Any]) -> None:
    for dim in (64, 80, 96, 128, 256):
        for group in (1, 2, 4, 7, 8) if dim == 128 else (1, 7):
            assert f"decode-d{dim}-g{group}-bf16-plain" in today
            assert f"decode-d{dim}-g{group}-bf16-edited" in today


def test_decodes_count_the_blocks_that_fit() -> None:
    """What tuning.json says of a form, on the GPU that is assumed."""
    kinds = {"bf16": torch.bfloat16, "fp32": torch.float32}
    for dim, group, kind, form in product((64, 128, 256), (1, 7), kinds, ("plain", "edited")):
        facts = forms(PINNED)[f"decode-d{dim}-g{group}-{kind}-{form}"]
        config = decode_config(dim, group, form == "edited", kinds[kind])
        fits = running().resident_blocks(facts["registers"], facts["shared_memory"], facts["warps"])
        assert config.blocks == fits, (dim, group, kind, form)
