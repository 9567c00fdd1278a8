"""Every shipped form of every kernel, compiled for an H100 or H200 on a machine without a GPU.

The interpreter cannot run in a process that compiles, so the work is done in others.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("triton.backends.nvidia")

WORKERS = 2
SHARED_MEMORY_LIMIT = 227 * 1024
REGISTERS_OF_AN_SM = 65536

KNOWN_SPILLS = {
    "saliency16-d256-g7-c8-fp32": 32,
    "prefill-d256-fp32-edited": 16,
    "prefill-d128-bf16-edited-capped": 8,
}
"""Bytes of stack. Single precision at 256 serves no purpose but to be right, and no family that is
served caps its scores."""

SCRIPT = """
import json, sys, warnings
from dataclasses import asdict
warnings.simplefilter("error")
from saccade_kernels.gpu.offline import compile_variant
from saccade_kernels.gpu.variants import shipped
share, workers = map(int, sys.argv[1:])
for index, variant in enumerate(shipped()):
    if index % workers == share:
        facts = {"name": variant.name, "num_warps": variant.num_warps}
        types = {variant.types[n] for n in variant.kernel.arg_names if n in variant.types}
        facts["halves"] = bool(types & {"*bf16", "*fp16"})
        print(json.dumps(facts | asdict(compile_variant(variant))), flush=True)
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Facts of every variant, by name."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))

    def compile_share(share: int) -> str:
        command = [sys.executable, "-c", SCRIPT, str(share), str(WORKERS)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    facts = {}
    with ThreadPoolExecutor(WORKERS) as workers:
        for output in workers.map(compile_share, range(WORKERS)):
            for line in output.splitlines():
                found = json.loads(line)
                assert found["name"] not in facts, "two variants of one name"
                facts[found["name"]] = found
    return facts


@pytest.mark.timeout(900)
def test_there_are_no_spills(compiled):
    spilled = {name: f["stack"] for name, f in compiled.items() if f["stack"]}
    assert spilled == KNOWN_SPILLS


def test_products_of_warp_groups_overlap(compiled):
    """A loop may be written so that each waits for the one before; only a warning says so."""
    grouped = [f for f in compiled.values() if f["warp_group_products"]]
    assert len(grouped) > 20
    assert not [f["name"] for f in grouped if f["serialised"]]


def test_shared_memory_and_registers_fit(compiled):
    for name, facts in compiled.items():
        assert facts["shared_memory"] <= SHARED_MEMORY_LIMIT, name
        assert facts["registers"] * 32 * facts["warps"] <= REGISTERS_OF_AN_SM, name


def test_products_of_halves_run_on_tensor_cores(compiled):
    attending = ("decode-", "prefill-", "class", "saliency", "column", "row")
    found = [f for f in compiled.values() if f["name"].startswith(attending) and f["halves"]]
    assert len(found) > 100
    assert not [f["name"] for f in found if not f["warp_products"] + f["warp_group_products"]]


def test_decode_covers_the_shapes(compiled):
    for dim in (64, 80, 96, 128, 256):
        for group in (1, 2, 4, 7, 8) if dim == 128 else (1, 7, 8):
            for classes in (0, 1, 2, 4, 8):
                assert f"decode-d{dim}-g{group}-c{classes}-bf16" in compiled
