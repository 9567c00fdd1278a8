"""The parts of a measurement, most important first. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

KERNELS = ("kernels/saccade_kernels",)
ENGINE = (
    *KERNELS,
    "interventions/saccade_interventions",
    "server/saccade_server/models",
    "server/saccade_server/engine",
    "server/saccade_server/requests",
)
ALL = (*KERNELS, "interventions/saccade_interventions", "server/saccade_server")
TESTED = (*ALL, "tests/kernels", "tests/server", "tests/support", "tests/conftest.py")


@dataclass(frozen=True)
class Part:
    """A named piece of the measurement.

    ``run`` is where it is, "module:function". Parts of one ``lane`` that follow each other share a
    process, and what it has loaded. ``least``: seconds, it is not begun with fewer; ``limit``: it
    is ended behind so many. ``roots`` is the code that it measures, beside its own: if any of it
    changes it is measured again. ``beside``: nothing in it is timed, so it runs at the same time as
    its neighbours.
    """

    name: str
    document: str
    run: str
    least: float
    limit: float
    lane: str
    roots: tuple[str, ...]
    model: str = ""
    beside: bool = False


def _kernels(name: str, run: str, least: float, limit: float, beside: bool = False) -> Part:
    return Part(name, "kernels", f"gpu.{run}", least, limit, "kernels", KERNELS, beside=beside)


def _engine(model: str, what: str, run: str, least: float, limit: float) -> Part:
    name, document = f"{model}_{what}", f"engine-{model}"
    lane = f"{model} alone" if what == "peers" else model
    if what == "profile":
        document = "profile"
    return Part(name, document, f"gpu.{run}", least, limit, lane, ENGINE, model)


def _model(model: str) -> list[Part]:
    return [
        _engine(model, "steps", "steps:run_steps", 45, 170),
        _engine(model, "prompts", "steps:run_prompts", 20, 60),
        _engine(model, "mixed", "mixed:run_mixed", 20, 60),
        _engine(model, "profile", "profile:run_profile", 20, 60),
        _engine(model, "tokens", "throughput:run_tokens", 20, 60),
    ]


PARTS: tuple[Part, ...] = (
    Part("tests", "tests", "gpu.marked_tests:run_tests", 40, 200, "tests", TESTED, beside=True),
    _kernels("accuracy", "accuracy:run_accuracy", 40, 200, beside=True),
    _kernels("ceilings", "ceilings:measure_ceilings", 15, 60),
    *_model("llava"),
    Part("start", "start", "gpu.start:run_start", 60, 240, "start", ALL),
    _engine("llava", "methods", "methods:run_methods", 40, 300),
    _kernels("decode", "decode_sweep:run_decode", 20, 120),
    _kernels("prefill", "prefill_sweep:run_prefill", 20, 120),
    _kernels("layers", "layer_sweep:run_layers", 10, 60),
    _kernels("products", "product_sweep:run_products", 15, 90),
    _kernels("sinks", "sink_sweep:run_sinks", 5, 60),
    _kernels("residuals", "residual_sweep:run_residuals", 8, 60),
    _kernels("masks", "mask_sweep:run_masks", 5, 30),
    _kernels("saliency", "saliency_sweep:run_saliency", 15, 60),
    _kernels("per_head_classes", "per_head_sweep:run_per_head", 15, 60),
    _kernels("decode_peers", "decode_sweep:run_decode_peers", 10, 60),
    _engine("llava", "peers", "throughput:run_peers", 40, 240),
    _engine("llava", "programs", "steps:run_programs", 30, 90),
    *_model("qwen"),
    _engine("qwen", "methods", "methods:run_methods", 40, 300),
    _kernels("flex", "flex:run_flex", 45, 240),
    _engine("llava", "options", "throughput:run_options", 60, 200),
    Part("tune", "tune", "gpu.tune:run_tune", 60, 560, "tune", KERNELS),
)


def rounds(parts: Sequence[Part]) -> list[list[Part]]:
    """What runs at the same time: neighbours in which nothing is timed; each other part alone."""
    found: list[list[Part]] = []
    for beside, group in groupby(parts, key=lambda part: part.beside):
        some = list(group)
        found += [some] if beside else [[part] for part in some]
    return found


def chosen(names: Sequence[str] | None) -> list[Part]:
    """The parts of these names, in their order of importance.

    Raises:
        ValueError: there is no such part.
    """
    known = [part.name for part in PARTS]
    if unknown := sorted(set(names or ()) - set(known)):
        raise ValueError(f"no part {', '.join(unknown)}; there are {', '.join(known)}")
    return [part for part in PARTS if not names or part.name in names]
