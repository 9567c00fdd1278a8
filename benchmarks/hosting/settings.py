"""What requests ask for: every method as it is by default, and at a setting that is heavy but real.

Each setting is a function of a number near 1, which changes its strength a little: programs of two
different numbers are never the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hosting.stub import FINGERPRINT, HEAD_DIM, HEADS, HIDDEN, IMAGE_SIDE, LAYERS
from saccade_interventions.artifacts import Artifact, read_artifact, write_artifact
from saccade_interventions.registry import Registry

Entry = dict[str, Any]
Setting = Callable[[float], list[Entry]]

EVERY_LAYER = list(range(LAYERS))
EVERY_ROW = "prompt+generated"
SOME_HEADS = {str(layer): list(range(layer % 4, HEADS, 8)) for layer in range(12, 28)}
"""64 heads, as calibration lists them."""
OTHER_HEADS = {str(at): [h for h in range(HEADS) if (h + at) % 3] for at in EVERY_LAYER}
"""Two thirds of all heads, another list in every layer of three."""
TEXT = "the second word"
"""In the prompts' text."""


def _disc(side: int) -> dict[str, list[int]]:
    """A mask that marks a disc in the middle, two thirds as wide as the image."""
    down, across = np.indices((side, side)) - (side - 1) / 2
    marked = (down**2 + across**2 < (side / 3) ** 2).T.ravel()
    edges = np.flatnonzero(np.diff(marked, prepend=False, append=True))
    return {"size": [side, side], "counts": np.diff(edges, prepend=0).tolist()}


def _example(entry: Entry) -> Setting:
    return lambda x: [entry]


def _pairs(heads: Mapping[str, list[int]]) -> list[tuple[int, int]]:
    return [(int(layer), head) for layer, chosen in heads.items() for head in chosen]


def artifacts() -> tuple[dict[str, str], dict[str, Artifact]]:
    """Name -> digest of what the settings name, and digest -> artifact."""
    rng = np.random.default_rng(0)
    every = [(layer, head) for layer in EVERY_LAYER for head in range(HEADS)]
    tensors: dict[str, tuple[str, dict[str, Any]]] = {
        "some": ("heads", {"heads": np.array(_pairs(SOME_HEADS))}),
        "every": ("heads", {"heads": np.array(every)}),
    }
    for name, layers in (("one_vector", [16]), ("vectors", EVERY_LAYER[1:])):
        values = rng.normal(size=(len(layers), HIDDEN))
        tensors[name] = ("vectors", {"vectors": values, "layers": np.array(layers)})
    for name, heads in (("some_vectors", _pairs(SOME_HEADS)), ("head_vectors", every)):
        values, sigma = rng.normal(size=(len(heads), HEAD_DIM)), rng.uniform(size=len(heads))
        found = {"heads": np.array(heads), "vectors": values, "sigma": sigma}
        tensors[name] = ("head_vectors", found)
    means = rng.normal(size=(LAYERS, HEADS, HEAD_DIM))
    tensors["means"] = ("head_means", {"means": means})
    read = {n: read_artifact(write_artifact(k, FINGERPRINT, t)) for n, (k, t) in tensors.items()}
    return {n: a.digest for n, a in read.items()}, {a.digest: a for a in read.values()}


def settings(named: Mapping[str, str]) -> dict[str, dict[str, Setting]]:
    """ "default" and "heavy" -> name -> setting; ``named`` are the digests of artifacts.

    Methods that a request cannot name alone get what they need. A method without numbers gets
    another list of heads for another number, and one that is not listed its own example,
    whatever the number.
    """

    def some(x: float) -> dict[str, list[int]]:
        return {**SOME_HEADS, "31": [round(x * 1e4) % HEADS]}

    default: dict[str, Setting] = {
        "plain": lambda x: [],
        "act": lambda x: [{"method": "act", "artifact": named["some"], "beta": 0.4 * x}],
        "adaptvis": lambda x: [{"method": "adaptvis", "w1": 0.5 * x}],
        "dola": lambda x: [{"method": "dola", "strength": x}],
        "function_vector": lambda x: [
            {"method": "function_vector", "artifact": named["one_vector"], "coefficient": x}
        ],
        "head_ablation": lambda x: [{"method": "head_ablation", "heads": some(x)}],
        "head_scale": lambda x: [{"method": "head_scale", "gain": 1.5 * x, "heads": SOME_HEADS}],
        "head_steering": lambda x: [
            {"method": "head_steering", "artifact": named["some_vectors"], "alpha": 15 * x}
        ],
        "locore": lambda x: [{"method": "locore", "beta": 0.15 * x}],
        "look_at": lambda x: [
            {"method": "look_at", "regions": [{"box": [50, 60, 200, 250]}], "strength": 2 * x}
        ],
        "pai": lambda x: [{"method": "pai", "alpha": 0.2 * x}],
        "pai_contrast": lambda x: [{"method": "pai_contrast", "gamma": 1.2 * x}],
        "pasta": lambda x: [
            {"method": "pasta", "highlight": [TEXT], "heads": SOME_HEADS, "alpha": 0.01 * x}
        ],
        "scalingvis": lambda x: [{"method": "scalingvis", "w": 1.2 * x}],
        "sgrs": lambda x: [{"method": "sgrs", "alpha": 0.6 * x}],
        "steering": lambda x: [
            {"method": "steering", "artifact": named["one_vector"], "coefficient": x}
        ],
        "vaf": lambda x: [{"method": "vaf", "enhance": 1.15 * x}],
        "var": lambda x: [{"method": "var", "move_fraction": 0.4 * x}],
        "vcd": lambda x: [{"method": "vcd", "alpha": x}],
        "vhr": lambda x: [{"method": "vhr", "gain": 2.0 * x}],
    }
    for name, kind in Registry.discover().methods.items():
        default.setdefault(name, _example(kind.example))
    sited = {"heads": OTHER_HEADS, "rows": EVERY_ROW}

    def more(method: str, **fields: Any) -> Setting:
        return lambda x: [{**default[method](x)[0], **fields}]

    heavy: dict[str, Setting] = {
        "act": more("act", artifact=named["every"]),
        "adaptvis": more("adaptvis", heads=OTHER_HEADS),
        "dola": more("dola", layers=EVERY_LAYER, early_norm=True),
        "function_vector": more("function_vector", rows=EVERY_ROW),
        "head_ablation": lambda x: [
            {
                "method": "head_ablation",
                "mode": "mean",
                "means": named["means"],
                "heads": {**OTHER_HEADS, "31": [round(x * 1e4) % HEADS]},
                "rows": EVERY_ROW,
            }
        ],
        "head_scale": more("head_scale", **sited),
        "head_steering": more("head_steering", artifact=named["head_vectors"], rows=EVERY_ROW),
        "locore": more("locore", heads=OTHER_HEADS, variant="literal"),
        "pai": more("pai", **sited),
        "look_at": more(
            "look_at",
            regions=[{"image": 1, "mask": _disc(IMAGE_SIDE)}, {"text": TEXT}],
            elsewhere=-1,
            **sited,
        ),
        "pasta": more("pasta", **sited),
        "scalingvis": more("scalingvis", heads=OTHER_HEADS),
        "sgrs": more("sgrs", layers=EVERY_LAYER[6:], region="after_image"),
        "steering": more("steering", artifact=named["vectors"], op="piecewise", rows=EVERY_ROW),
        "vaf": more("vaf", **sited),
        "var": more("var", heads=OTHER_HEADS, sinks_in_generated=True),
        "vcd": more("vcd", edit_branch=True),
        "vhr": more("vhr", layers=EVERY_LAYER, diagnose=8),
        "var + pai + head_scale": lambda x: [
            *default["var"](x),
            {**default["pai"](x)[0], **sited},
            {**default["head_scale"](x)[0], **sited},
        ],
    }
    return {"default": default, "heavy": heavy}
