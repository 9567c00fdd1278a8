"""Floors of the GPU benchmarks: the least time by the best measured rate, which no figure beats."""

import json
from pathlib import Path
from typing import Any

import pytest
from gpu import shapes

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ENGINE = sorted((BENCHMARKS / "results").glob("engine-*-nvidia-*.json"))
KERNELS = sorted((BENCHMARKS / "results").glob("kernels-nvidia-*.json"))


MODELS = {"engine-llava": shapes.LLAVA, "engine-qwen": shapes.QWEN}
HEADS = {"32/32": shapes.MHA, "28/4": shapes.GQA}


def figures(path: Path) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    document = json.loads(path.read_text())
    return shapes.Ceilings.of(document["figures"]["ceilings"]), document["figures"], document


def measured(cells: dict[str, Any], name: str) -> list[tuple[str, dict[str, Any]]]:
    """Those entries of a part that have this figure: others failed, or did not fit."""
    return [(label, cell) for label, cell in cells.items() if name in cell]


def sizes(label: str) -> tuple[int, int]:
    batch, context = map(int, label.split("x"))
    return batch, context


@pytest.mark.parametrize("fastest", ["copy", "read", "weights"])
def test_memory_is_as_fast_as_the_fastest_thing_that_moved_bytes(fastest: str) -> None:
    rates = {"copy": 2e12, "read": 2e12, "weights": 2e12, fastest: 3e12}
    slow, fast = shapes.Ceilings(**rates, flops=7e14), shapes.Ceilings(3e12, 3e12, 3e12, 7e14)
    assert slow.memory == 3e12
    assert shapes.LLAVA.decode_floor(1, 1024, slow) == shapes.LLAVA.decode_floor(1, 1024, fast)


@pytest.mark.parametrize("path", ENGINE, ids=lambda path: path.stem)
def test_no_measured_step_beats_its_floor(path: Path) -> None:
    ceilings, found, document = figures(path)
    model, name = MODELS[document["name"]], document["name"].removeprefix("engine-")
    steps, prompts = found[f"{name}_steps"], found[f"{name}_prompts"]
    assert steps
    for label, cell in measured(steps, "floor_ms"):
        batch, context = sizes(label)
        floor = model.decode_floor(batch, context, ceilings) * 1e3
        taken = [cell[share]["ms"] for share in cell if share.endswith("edited")]
        assert min(taken) > cell["floor_ms"] >= floor, label
        assert cell["floor_ms"] < 1.05 * floor, "by today's rule"
    for label, cell in measured(prompts, "floor_ms"):
        floor = model.prefill_floor(sizes(label)[1], ceilings) * 1e3
        assert cell["floor_ms"] == pytest.approx(floor), label
        assert min(cell[rows]["ms"] for rows in ("plain", "question", "all rows")) > floor, label


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_no_kernel_beats_the_chip(path: Path) -> None:
    ceilings, found, _ = figures(path)
    assert found["decode"]
    for label, cell in measured(found["decode"], "plain"):
        heads, shape = label.split()
        batch, context = sizes(shape)
        rate = HEADS[heads].kv_bytes(batch * context) / cell["plain"]["us"] * 1e6
        assert cell["plain"]["of_best"] == pytest.approx(rate / ceilings.memory, rel=1e-4), label
        assert rate < ceilings.memory, label
    for label, cell in found["prefill"].items():
        timings = {n: t for n, t in cell.items() if isinstance(t, dict)}
        for variant, timing in timings.items():
            assert timing.get("tflop_s", 0) * 1e12 < ceilings.flops, (label, variant)


@pytest.mark.parametrize("path", [*ENGINE, *KERNELS], ids=lambda path: path.stem)
def test_a_result_of_a_repaired_tree_names_the_repairs(path: Path) -> None:
    document = figures(path)[2]
    assert document["commit"].endswith("+") == bool(document.get("repairs"))
    assert "/root" not in path.read_text()


def test_there_are_results_to_look_at() -> None:
    assert ENGINE
    assert KERNELS
