"""Draw what was measured on each card, in one file beside its results. Needs matplotlib.

    python benchmarks/plot.py [benchmarks/results/kernels-nvidia-h200.json ...]

Without arguments: every result that has something to draw. A missing part is left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
from report import RESULTS

Figures = dict[str, Any]
Draw = Callable[[Any, Figures], bool]
"""Fills axes from a result's figures; False if the result has nothing for it."""

plt.rcParams["svg.hashsalt"] = "saccade"  # the same figures give the same file


def decode_bandwidth(axes: Any, figures: Figures) -> bool:
    """Bandwidth of plain and edited decode by batch and context, against the ceilings."""
    found = figures.get("decode", {})
    shapes = sorted({name.split()[1] for name in found}, key=_tokens)
    for heads in sorted({name.split()[0] for name in found}):
        for variant, style in (("plain", "-o"), ("mass edit on all", "--s")):
            points = [
                (index, cell["plain"]["tb_s"] * cell["plain"]["us"] / cell[variant]["us"])
                for index, shape in enumerate(shapes)
                for cell in [found.get(f"{heads} {shape}", {})]
                if "tb_s" in cell.get("plain", {}) and "us" in cell.get(variant, {})
            ]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=f"{heads} heads, {variant}")
    ceilings = figures.get("ceilings", {})
    for name, style in (("copy", ":"), ("read", "-.")):
        if "tb_s" in ceilings.get(name, {}):
            axes.axhline(ceilings[name]["tb_s"], color="grey", ls=style, label=f"measured {name}")
    axes.set_xticks(range(len(shapes)), shapes, rotation=30)
    axes.set(xlabel="batch x context", ylabel="keys and values, TB/s")
    axes.set(title="Paged decode", ylim=(0, None))
    return bool(found)


def prefill_rate(axes: Any, figures: Figures) -> bool:
    """Speed of prefill over the prompt's length, with peers."""
    found = figures.get("prefill", {})
    if not found:
        return False
    heads = next(iter(found)).split()[0]
    shown = ("plain", "mass edit on the question's rows", "mass edit on all rows", "sdpa cudnn")
    for variant, style in zip(shown, ("-o", "-v", "--s", ":x"), strict=True):
        points = [
            (_tokens(name.split()[1]), cell[variant]["tflop_s"])
            for name, cell in found.items()
            if name.startswith(f"{heads} 1x") and "tflop_s" in cell.get(variant, {})
        ]
        if points:
            axes.plot(*zip(*sorted(points), strict=True), style, label=variant)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="prompt, tokens", ylabel="TFLOP/s")
    axes.set(title=f"Causal prefill, {heads} heads", ylim=(0, None))
    return True


def programs(axes: Any, figures: Figures) -> bool:
    """Time of the attention op over the number of programs in the batch."""
    drawn = False
    for name, cell in figures.get("decode", {}).items():
        times = {int(n): t["us"] for n, t in cell.get("programs", {}).items() if "us" in t}
        if 1 in times and len(times) > 1:
            axes.plot(list(times), [t / times[1] for t in times.values()], "-o", label=name)
            drawn = True
    axes.axhline(1.03, color="grey", ls=":", label="target")
    axes.set(xlabel="different programs in the batch", ylabel="time over that with one")
    axes.set(title="Attention, a mass edit on every request")
    axes.set_xscale("log", base=2)
    return drawn


def _tokens(shape: str) -> int:
    """Tokens of a shape like 8x4096."""
    batch, context = map(int, shape.split("x"))
    return batch * context


def plan_throughput(axes: Any, figures: Figures) -> bool:
    """Tokens per second over the number of plans in the batch."""
    drawn = False
    for part, found in figures.items():
        if not part.endswith("_programs") or not found:
            continue
        cells = {n: cell for n, cell in found.items() if "tokens_per_second" in cell}
        points = sorted((int(n), cell["tokens_per_second"]) for n, cell in cells.items())
        axes.plot(range(len(points)), [rate for _, rate in points], "-o", label=part[:-9])
        axes.set_xticks(range(len(points)), [str(count) for count, _ in points])
        drawn = True
    axes.set(xlabel="different plans among 32 requests (0: none)", ylabel="tokens per second")
    axes.set(title="Decoding at 1k context", ylim=(0, None))
    return drawn


def step_times(axes: Any, figures: Figures) -> bool:
    """Decode steps over their floors, by batch and context."""
    drawn = False
    for part, found in figures.items():
        if not part.endswith("_steps") or not found:
            continue
        for label, style in (("0% edited", "-o"), ("100% edited", "--s")):
            cells = {name: cell for name, cell in found.items() if label in cell}
            ratios = [cell[label]["ms"] / cell["floor_ms"] for cell in cells.values()]
            if ratios:
                axes.plot(list(cells), ratios, style, label=f"{part[:-6]}, {label}")
                drawn = True
    axes.axhline(1.4, color="grey", ls=":", label="target")
    axes.set(xlabel="batch x context", ylabel="step time over its floor")
    axes.set(title="Whole decode step", ylim=(0.9, None))
    return drawn


def method_costs(axes: Any, figures: Figures) -> bool:
    """A token's time with each method, over that without."""
    found = figures.get("llava_methods", {})
    for offset, (batch, colour) in enumerate((("1", "C0"), ("8", "C1"), ("32", "C2"))):
        cells = {n: c.get(f"batch {batch}", {}) for n, c in found.items() if n != "methods"}
        ratios = [(i, c["step_ratio"]) for i, c in enumerate(cells.values()) if "step_ratio" in c]
        places = [index + 0.25 * (offset - 1) for index, _ in ratios]
        axes.bar(places, [r for _, r in ratios], 0.25, color=colour, label=f"batch {batch}")
        axes.set_xticks(range(len(cells)), list(cells), rotation=75, fontsize=7)
    axes.axhline(1, color="grey", ls=":")
    axes.set(title="Time of a token with each method, over none", yscale="log")
    return any(f"batch {b}" in cells for cells in found.values() for b in (1, 8, 32))


PLOTS: tuple[Draw, ...] = (
    step_times,
    method_costs,
    plan_throughput,
    decode_bandwidth,
    prefill_rate,
    programs,
)


def draw(results: Sequence[Path]) -> Path | None:
    """What documents of one card hold, as ``gpu-<card>.svg`` beside the first."""
    documents = [json.loads(path.read_text()) for path in results]
    figures = {name: part for one in documents for name, part in one["figures"].items()}
    figure, axes = plt.subplots(2, 3, figsize=(18, 8.6))
    drawn = False
    for axis, plot in zip(axes.flat, PLOTS, strict=True):
        if plot(axis, figures):
            axis.legend(fontsize=8)
            axis.grid(alpha=0.3)
            drawn = True
        else:
            axis.set_visible(False)
    if not drawn:
        plt.close(figure)
        return None
    about = documents[0]["hardware"]
    commits = " ".join(sorted({one["commit"] for one in documents}))
    figure.suptitle(f"{about.get('gpu', about['kind'])}, commit {commits}", fontsize=9)
    figure.tight_layout()
    target = results[0].parent / f"gpu-{about['kind']}.svg"
    figure.savefig(target, metadata={"Date": None})
    plt.close(figure)
    return target


def by_card(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Documents with figures that may be drawn, by the kind of their hardware."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        document = json.loads(path.read_text())
        if document.get("name", "").split("-")[0] in ("kernels", "engine"):
            found.setdefault(document["hardware"]["kind"], []).append(path)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="*", type=Path)
    given = parser.parse_args().results or sorted(RESULTS.glob("*.json"))
    for some in by_card(given).values():
        target = draw(some)
        if target is not None:
            print(target)


if __name__ == "__main__":
    main()
