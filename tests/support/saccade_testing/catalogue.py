"""Interventions as requests name them: every method, every kind of rule, every option of a rule.

What is compared by a golden and what random workloads draw from. Numbers are strong enough that a
tiny model answers otherwise. Prompts have up to two images; entries of TEXT need none.
"""

from typing import Any

import numpy as np

from saccade_interventions.artifacts import Artifact, read_artifact, write_artifact
from saccade_interventions.model_facts import ModelFacts

MODEL = "sha256:" + "c" * 64
FACTS = ModelFacts(
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=16,
    hidden_size=64,
    sink_dims=(3, 11),
    fingerprint=MODEL,
    special_tokens=(0, 1, 2),
)
"""Of every tiny model."""

Entry = dict[str, Any]
Entries = tuple[Entry, ...]


def _artifacts() -> dict[str, Artifact]:
    rng = np.random.default_rng(11)

    def some(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    heads = np.array([(2, 3), (1, 0), (2, 1)])
    made: dict[str, tuple[str, dict[str, Any]]] = {
        "vectors": ("vectors", {"vectors": some(3, 64), "layers": np.array((0, 2, 4))}),
        "vector": ("vectors", {"vectors": some(1, 64), "layers": np.array((3,))}),
        "heads": ("heads", {"heads": heads}),
        "directions": (
            "head_vectors",
            {"heads": heads, "vectors": some(3, 16), "sigma": np.array((0.5, 1.5, 1.0))},
        ),
        "means": ("head_means", {"means": some(4, 4, 16)}),
        "subspaces": ("subspaces", {"vectors": some(3, 64), "layers": np.array((3, 1, 3))}),
        "low_rank": (
            "low_rank",
            {
                "read": some(3, 64) / 8,
                "write": some(3, 64),
                "shift": np.array((0.5, 1.5, 1.0)),
                "layers": np.array((3, 1, 3)),
            },
        ),
        "diagonal": (
            "diagonal",
            {"scale": some(2, 64), "shift": some(2, 64), "layers": np.array((1, 3))},
        ),
        "sinks": ("sinks", {"dims": np.array((3, 11))}),
    }
    return {name: read_artifact(write_artifact(kind, MODEL, t)) for name, (kind, t) in made.items()}


_MADE = _artifacts()
NAMED = {name: artifact.digest for name, artifact in _MADE.items()}
STORE = {artifact.digest: artifact for artifact in _MADE.values()}

ACT: Entry = {"method": "act", "heads": {"0": [1, 3], "3": [0, 2]}, "theta": 0.06, "beta": 0.1}
LOCORE: Entry = {"method": "locore", "beta": 3.0, "layers": [0, 1, 2, 3]}
DOLA: Entry = {"method": "dola", "layers": [0, 1, 3]}
SGRS: Entry = {"method": "sgrs", "alpha": 1.2, "layers": [0, 3], "warmup": 1}
STEER: Entry = {"method": "steering", "artifact": NAMED["vectors"], "coefficient": 0.3}
PAI: Entry = {"method": "pai", "alpha": 0.8}
VCD: Entry = {"method": "vcd", "alpha": 1.5, "noise_step": 700}
CONTRAST: Entry = {"method": "pai_contrast", "gamma": 2.0}
M3ID: Entry = {"method": "m3id", "rate": 0.2, "offset": 3}
VAF: Entry = {"method": "vaf", "enhance": 1.5, "suppress": 0.5}
GAIN: Entry = {"method": "head_scale", "gain": 1.5, "layers": [1]}
VHR: Entry = {"method": "vhr", "gain": 3.0, "rows": "last+generated"}
WEIGHS: Entry = {"method": "scalingvis", "w": 2.0}
UNSURE: Entry = {"method": "adaptvis", "w1": 3.0, "w2": 0.2, "threshold": 1.0}
VAR: Entry = {
    "method": "var",
    "tau": 1.0,
    "min_visual_mass": 0.02,
    "rho": 0.3,
    "move_fraction": 0.6,
    "layers": [1, 2],
}
LOOKS: Entry = {"method": "look_at", "regions": [{"tokens": [2, 6]}], "strength": 3.0}
SEES: Entry = {
    **{"method": "look_at", "regions": [{"box": [20, 10, 70, 50]}, {"tokens": [3, 5]}]},
    **{"strength": 3.0, "elsewhere": -3.0},
}
WEIGHED: Entry = {"method": "look_at", "regions": [{"tokens": [2, 6], "weights": [4, 0, 0.5, 9]}]}
DRAWN: Entry = {"method": "look_at", "regions": [{"image": 0, "weights": [[0, 6], [2, 0.1]]}]}
MARKS: Entry = {"method": "pasta", "alpha": 0.05, "spans": [[2, 6], [8, 9]], "layers": [0, 2]}

TEXT: dict[str, Entry] = {
    "act": ACT,
    "act row": {**ACT, "decode": "row"},
    "act frozen": {**ACT, "decode": "frozen"},
    "act off": {**ACT, "decode": "off"},
    "act relative": {**ACT, "mode": "relative", "alpha": 2.0},
    "act first found": {**ACT, "spare": "first_found", "theta": 0.05},
    "act receivers": {**ACT, "receivers": "not_initial"},
    "act receivers, row": {**ACT, "receivers": "not_initial", "decode": "row"},
    "act receivers, frozen": {**ACT, "receivers": "not_initial", "decode": "frozen"},
    "act least rows": {**ACT, "least_rows": 1, "theta": 0.08},
    "act artifact": {"method": "act", "artifact": NAMED["heads"], "theta": 0.06, "beta": 0.0},
    "act every head": {
        **ACT,
        "heads": {str(layer): [0, 1, 2, 3] for layer in range(4)},
        "beta": 0.5,
    },
    "locore": LOCORE,
    "locore literal": {**LOCORE, "variant": "literal", "beta": 0.4},
    "locore score": {**LOCORE, "variant": "score", "beta": 1.0},
    "locore after image": {**LOCORE, "region": "after_image", "window": 3},
    "locore itself": {**LOCORE, "include_self": True},
    "locore itself, literal": {
        **{**LOCORE, "include_self": True, "variant": "literal"},
        "beta": 0.5,
        "region": "after_image",
    },
    "locore one head": {**LOCORE, "layers": None, "heads": {"1": [2], "2": [0, 3]}},
    "dola": DOLA,
    "dola jsd": {**DOLA, "divergence": "jsd"},
    "dola low": {"method": "dola", "layers": "low"},
    "dola high": {"method": "dola", "layers": "high", "strength": 0.5},
    "dola one layer": {"method": "dola", "layers": [2], "relative_top": 0.02},
    "dola embeddings": {"method": "dola", "layers": [0], "early_norm": True},
    "dola norm": {**DOLA, "early_norm": True, "divergence": "jsd", "strength": 2.0},
    "sgrs": SGRS,
    "sgrs mean": {**SGRS, "normalisation": "mean", "alpha": 0.9},
    "sgrs without itself": {**SGRS, "with_self": False, "window": 3},
    "sgrs accepted": {**SGRS, "history": "accepted", "alpha": 1.6},
    "sgrs most salient": {**SGRS, "fallback": "most_salient", "alpha": 2.0},
    "sgrs after image": {**SGRS, "region": "after_image", "candidates": 7, "draws": 5},
    "sgrs warm": {**SGRS, "warmup": 4, "window": 2, "candidates": 3, "alpha": 1.5},
    "sgrs one draw": {**SGRS, "draws": 1, "layers": None, "alpha": 1.6},
    "steering": STEER,
    "steering rms": {**STEER, "coefficient": 8, "unit": "rms", "keep_norm": True},
    "steering unit": {**STEER, "coefficient": -2, "unit": "unit", "rows": "prompt+generated"},
    "steering piecewise": {**STEER, "op": "piecewise", "coefficient": 0.4, "rows": "prompt"},
    "steering out": {"method": "steering", "op": "project_out", "artifact": NAMED["subspaces"]},
    "steering clamp": {
        **{"method": "steering", "op": "clamp", "artifact": NAMED["vectors"]},
        **{"low": -0.2, "high": 0.5},
    },
    "steering above": {**STEER, "only_above": -0.5, "site": "attention_output", "layers": [2]},
    "steering mlp": {**STEER, "site": "mlp_output", "layers": [2], "rows": "generated"},
    "steering map": {"method": "steering", "op": "affine", "artifact": NAMED["low_rank"]},
    "steering diagonal": {
        **{"method": "steering", "op": "affine", "artifact": NAMED["diagonal"]},
        **{"coefficient": 0.3, "rows": "prompt+generated"},
    },
    "function vector": {
        **{"method": "function_vector", "artifact": NAMED["vector"], "coefficient": 0.7},
    },
    "head steering": {
        **{"method": "head_steering", "artifact": NAMED["directions"], "alpha": 1.5},
    },
    "head steering unit": {
        **{"method": "head_steering", "artifact": NAMED["directions"], "alpha": -2},
        **{"unit": "unit", "rows": "prompt+generated"},
    },
    "gain": GAIN,
    "gain artifact": {"method": "head_scale", "gain": -1.5, "artifact": NAMED["heads"]},
    "ablation": {"method": "head_ablation", "artifact": NAMED["heads"]},
    "ablation mean": {
        **{"method": "head_ablation", "mode": "mean", "means": NAMED["means"]},
        **{"heads": {"1": [0], "2": [3, 1]}},
    },
    "ablation uniform": {"method": "head_ablation", "mode": "uniform", "heads": {"1": [0, 2]}},
    "pasta": MARKS,
    "look at": LOOKS,
    "look away": {**LOOKS, "strength": "suppress", "heads": {"1": [0, 2], "3": [1]}},
    "look at, all rows": {**LOOKS, "rows": "prompt+generated", "layers": [1, 2]},
    "look at weights": {**WEIGHED, "rows": "prompt+generated", "layers": [1, 2]},
    "pasta include": {**MARKS, "mode": "include", "rows": "last+generated"},
}
"""Methods that need no image."""

SEEING: dict[str, Entry] = {
    "pai": PAI,
    "pai prompt": {**PAI, "rows": "prompt+generated", "heads": {"1": [0, 2], "2": [1]}},
    "pai generated": {**PAI, "rows": "generated", "layers": [0, 3]},
    "vaf": VAF,
    "look at box": SEES,
    "look at box only": {**SEES, "elsewhere": "suppress", "rows": "generated"},
    "look at map": {**DRAWN, "elsewhere": -1.0},
    "scalingvis": WEIGHS,
    "var": VAR,
    "var generated": {**VAR, "sinks_in_generated": True},
    "var last": {**VAR, "rows": "last+generated", "heads": [0, 2]},
    "var without visual": {**VAR, "require_visual_sink": False, "sink_dims": [5]},
    "var artifact": {
        **{**VAR, "layers": None, "artifact": NAMED["sinks"], "include_last_layer": True},
        "sinks_in_generated": True,
    },
    "vcd": VCD,
    "vcd seed": {**VCD, "noise_seed": 3, "beta": 0.3, "noise_step": 900},
    "pai contrast": CONTRAST,
    "m3id": M3ID,
    "m3id certain": {**M3ID, "certain": 0.09, "cutoff": 0.02},
    "m3id limited": {**M3ID, "certain": None, "limit": 1.5},
    "vhr": VHR,
    "vhr generated": {**VHR, "rows": "generated"},
    "vhr all rows": {**VHR, "rows": "prompt+generated"},
    "vhr question": {**VHR, "rows": "question+generated", "layers": [0, 1, 2, 3]},
    "vhr hidden": {**VHR, "without_image": "hidden"},
    "vhr hidden, all rows": {**VHR, "without_image": "hidden", "rows": "prompt+generated"},
    "vhr own gains": {**VHR, "branch_gains": False, "drop_outliers": False},
    "vhr relative": {**VHR, "relative": True, "std": "population", "layers": [1, 3]},
    "vhr report": {**VHR, "diagnose": 2},
    "vhr only report": {**VHR, "gain": 1.0, "diagnose": 3},
    "adaptvis unsure": UNSURE,
    "adaptvis sure": {**UNSURE, "threshold": 0.0},
    "adaptvis sure alone": {**UNSURE, "w1": 1.0, "threshold": 0.0, "layers": [1, 2]},
    "adaptvis nothing": {**UNSURE, "w1": 1.0},
}
"""Methods that need one."""

TOGETHER_TEXT: dict[str, Entries] = {
    "sgrs + act": (SGRS, ACT),
    "sgrs + locore": (SGRS, LOCORE),
    "sgrs + steering": (STEER, SGRS),
    "dola + act": (ACT, DOLA),
    "dola + locore": (LOCORE, {**DOLA, "divergence": "jsd"}),
    "dola + steering": (DOLA, {**STEER, "rows": "prompt+generated"}),
    "act + locore": ({**ACT, "decode": "row"}, LOCORE),
    "act + pasta + gain": (MARKS, ACT, GAIN),
    "steering + gain": (STEER, GAIN, {**STEER, "op": "piecewise"}),
}
"""Several methods at once, without an image."""

TOGETHER: dict[str, Entries] = {
    "var + vcd": (VAR, VCD),
    "var + vcd edited": (VAR, {**VCD, "edit_branch": True}),
    "pai + contrast": (PAI, CONTRAST),
    "pai + vcd edited": (PAI, {**VCD, "edit_branch": True}),
    "act + vcd edited": (ACT, {**VCD, "edit_branch": True}),
    "locore + vcd edited": ({**VCD, "edit_branch": True}, {**LOCORE, "region": "after_image"}),
    "sgrs + var": (SGRS, VAR),
    "look at + vaf + vcd edited": (SEES, VAF, {**VCD, "edit_branch": True}),
    "look at + look away + pai": (SEES, LOOKS, PAI),
    "look at map + weights + vcd edited": (
        *(DRAWN, {**WEIGHED, "layers": [1]}, {**DRAWN, "rows": "generated"}),
        {**VCD, "edit_branch": True},
    ),
    "sgrs + vhr": (SGRS, VHR),
    "sgrs + adaptvis": (UNSURE, SGRS),
    "sgrs + pai + locore": (LOCORE, PAI, {**SGRS, "region": "after_image"}),
    "act + pai": (ACT, PAI),
    "act + vhr": (VHR, ACT),
    "act + vhr all rows": (ACT, {**VHR, "rows": "prompt+generated"}),
    "act + var": ({**ACT, "heads": {"0": [1, 3], "3": [0]}}, VAR),
    "locore + var": (LOCORE, VAR),
    "locore + vhr hidden": (LOCORE, {**VHR, "without_image": "hidden"}),
    "vhr + vcd": (VCD, VHR),
    "vhr + dola": (VHR, DOLA),
    "vhr + var": (VAR, VHR),
    "vhr + contrast + act + locore": (CONTRAST, ACT, LOCORE, VHR),
    "adaptvis + var": (VAR, UNSURE),
    "adaptvis + locore": (UNSURE, LOCORE),
    "adaptvis + pai + gain": (PAI, GAIN, UNSURE),
    "adaptvis + var generated": ({**VAR, "sinks_in_generated": True}, UNSURE),
    "var generated + gain + pai": ({**VAR, "sinks_in_generated": True}, GAIN, PAI),
    "var + pai + steering": (VAR, PAI, STEER),
    "dola + var": (DOLA, VAR),
    "dola + vaf + scalingvis": (VAF, WEIGHS, DOLA),
}
"""Several methods at once, about an image."""

PLAIN: dict[str, Entries] = {"plain": ()}
WITHOUT_IMAGE: dict[str, Entries] = {
    **PLAIN,
    **{name: (entry,) for name, entry in TEXT.items()},
    **TOGETHER_TEXT,
}
WITH_IMAGE: dict[str, Entries] = {
    **WITHOUT_IMAGE,
    **{name: (entry,) for name, entry in SEEING.items()},
    **TOGETHER,
}
"""Name -> the entries of a request."""
