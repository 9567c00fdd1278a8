"""What GPUs of every capability would run, compiled for each on a machine without one.

As test_compiled.py does for an H100 or H200: the record must be of today's code, some forms are
compiled again, and `pytest -m long` compiles all of them. Here it matters whether they fit.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton.backends.nvidia")

from saccade_kernels.gpu.device import ASSUMED, KNOWN
from saccade_testing.compilers import COMPILERS, OLDER, PINNED, ROOT, run

SCRIPT = "compiled_chips.py"

TENSOR_MEMORY = 512
"""Columns of a multiprocessor."""

KNOWN_SPILLS: dict[str, dict[str, int]] = {
    PINNED: {
        "prefill-d128-bf16-edited": 56,
        "prefill-d128-bf16-edited-per-head": 48,
        "prefill-d64-bf16-edited": 8,
        "prefill-d256-bf16-masses-emit": 48,
        "prefill-d64-bf16-edited-per-head": 16,
        "prefill-d256-bf16-masses-emit-per-head": 48,
        "prefill-split-d256-bf16-c1": 32,
        "decode-d128-g7-bf16-edited": 8,
        "prefill-d128-bf16-scores": 72,
        "saliency32-d128-g7-c4-bf16-per-head": 16,
    },
    OLDER: {
        "decode-d128-g7-bf16-plain": 8,
        "prefill-d128-bf16-edited": 16,
        "prefill-d128-bf16-scores": 40,
        "prefill-d128-bf16-edited-per-head": 16,
        "decode-d128-g1-bf16-plain": 8,
    },
}
"""Bytes of stack of a thread, the most of any capability. Of rotations and of single precision see
test_compiled.py."""

SAMPLE = ("decode-d128-g7-bf16-edited", "prefill-d128-bf16-plain", "column32-d128-g7-bf16-edited")
SAMPLED = ("80", "86")


def record(compiler: str) -> Path:
    return ROOT / f"benchmarks/results/compiled-chips-triton-{compiler}.json"


@cache
def facts(compiler: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Of every form, by capability and name."""
    document = json.loads(record(compiler).read_text())
    assert document["versions"]["triton"] == compiler
    return {
        capability: {
            name: dict(zip(document["columns"], row, strict=True)) for name, row in forms.items()
        }
        for capability, forms in document["forms"].items()
    }


def test_every_capability_is_recorded() -> None:
    assert {*map(int, facts(PINNED)), ASSUMED} == set(KNOWN)


@COMPILERS
def test_every_form_fits(compiler: str) -> None:
    for capability, forms in facts(compiler).items():
        device = KNOWN[int(capability)]
        for name, form in forms.items():
            shape = (form["registers"], form["shared_memory"], form["warps"])
            assert device.resident_blocks(*shape) >= 1, (capability, name, shape)
            assert form["tensor_memory"] <= TENSOR_MEMORY, (capability, name)


@COMPILERS
def test_what_spills_is_known(compiler: str) -> None:
    stacks: dict[str, int] = {}
    for forms in facts(compiler).values():
        for name, form in forms.items():
            if form["stack"] and "-fp32" not in name and not name.startswith("rotation-"):
                stacks[name] = max(stacks.get(name, 0), form["stack"])
    assert stacks == KNOWN_SPILLS[compiler]


@COMPILERS
def test_the_record_is_of_todays_code(compiler: str) -> None:
    """Otherwise: make compiled."""
    found = facts(compiler)
    digests = {c: {n: form["digest"] for n, form in found[c].items()} for c in found}
    assert digests == json.loads(run(compiler, SCRIPT, "--list"))


@pytest.mark.timeout(900)
def test_a_sample_is_compiled_to_what_is_recorded() -> None:
    found = json.loads(run(PINNED, SCRIPT, "--capability", *SAMPLED, "--only", *SAMPLE))
    for capability in SAMPLED:
        forms = facts(PINNED)[capability]
        assert found[capability] == {name: list(forms[name].values()) for name in SAMPLE}


@pytest.mark.long
@pytest.mark.timeout(7200)
@COMPILERS
def test_everything_is_compiled_to_what_is_recorded(compiler: str, tmp_path: Path) -> None:
    run(compiler, SCRIPT, "--all", OUT=str(tmp_path))
    assert (tmp_path / record(compiler).name).read_text() == record(compiler).read_text()
