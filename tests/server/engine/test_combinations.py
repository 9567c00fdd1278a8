"""A method that chooses while the request runs, beside others, is the same as its choice asked for.

What is compared has no common path: VHR's gains are measured on a branch and come from the device,
those of HeadScale are in the plan; AdaptVis runs the last row twice, ScalingVis once; SGRS runs the
upper layers of each row again, and must leave no trace when it rejects nothing.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from saccade_interventions.registry import Registry
from saccade_testing import tiny
from saccade_testing.engine import MakeCore, ask, run

STEPS = 5
ACT = {
    "method": "act",
    "heads": {"0": [1, 3], "3": [0, 2]},
    "theta": 0.06,
    "beta": 0.1,
}
LOCORE = {"method": "locore", "beta": 3.0, "layers": [0, 1, 2, 3]}
OTHERS: dict[str, dict[str, Any]] = {
    "act": ACT,
    "act by row": {**ACT, "decode": "row", "receivers": "not_initial"},
    "locore": LOCORE,
    "dola": {"method": "dola", "layers": [0, 1, 3]},
    "vcd": {"method": "vcd", "alpha": 1.5, "noise_step": 700},
    "pai": {"method": "pai", "alpha": 0.8},
    "contrast": {"method": "pai_contrast", "gamma": 2.0},
    "vaf": {"method": "vaf", "enhance": 1.5, "suppress": 0.5},
    "gain": {"method": "head_scale", "gain": 1.5, "layers": [1]},
    "scalingvis": {"method": "scalingvis", "w": 2.0},
    "var": {
        "method": "var",
        "tau": 1.0,
        "min_visual_mass": 0.02,
        "rho": 0.3,
        "move_fraction": 0.6,
        "layers": [1, 2],
        "sink_dims": [3, 11],
    },
    "sgrs": {"method": "sgrs", "alpha": 1.2, "layers": [0, 3], "region": "after_image"},
}
CONTRASTS = ("dola", "vcd", "contrast")
BESIDE_VHR = [[name] for name in OTHERS] + [["sgrs", "locore"], ["contrast", "act", "locore"]]
BESIDE_ADAPTVIS = ["locore", "pai", "vaf", "gain", "scalingvis", "var", "sgrs"]
BESIDE_SGRS = [["act"], ["act by row"], ["locore", "pai"], ["var"], ["gain"], ["scalingvis"]]


@pytest.fixture(params=["llava", "qwen2_5_vl"])
def answer(request: pytest.FixtureRequest, make_core: MakeCore) -> Any:
    """``answer(entries)``: of one engine, about a prompt with two images."""
    prompt = tiny.prompt(request.param, images=2, seed=1, text=30)
    core = make_core(request.param)

    def found(entries: Iterable[dict[str, Any]]) -> Any:
        methods = Registry.discover().parse(list(entries))
        return run(core, [ask(prompt, methods, "r", STEPS, logprobs=1)])["r"]

    return found


def values(result: Any) -> np.ndarray:
    return np.array([entry.logprob for entry in result.logprobs])


def check(found: Any, wanted: Any, label: Any) -> None:
    assert len(wanted.tokens) == STEPS
    assert found.tokens == wanted.tokens, label
    np.testing.assert_allclose(values(found), values(wanted), atol=1e-5, err_msg=str(label))


@pytest.mark.parametrize(
    "options",
    [
        {"rows": "last+generated"},
        {"rows": "generated"},
        {"rows": "last+generated", "without_image": "hidden"},
    ],
    ids=["deleted", "generated rows", "hidden"],
)
def test_vhr_is_head_scale_on_the_heads_it_found(options: dict[str, str], answer: Any) -> None:
    for names in BESIDE_VHR:
        entries = [OTHERS[name] for name in names]
        found = answer([*entries, {"method": "vhr", "gain": 3.0, **options}])
        (measured,) = found.last.receipt.findings
        heads = {str(layer): list(some) for layer, some in measured.selected}
        heads = {layer: some for layer, some in heads.items() if some}
        assert heads, names
        scaled = {"method": "head_scale", "gain": 3.0, "rows": options["rows"], "heads": heads}
        check(found, answer([*entries, scaled]), names)


@pytest.mark.parametrize(("threshold", "weight"), [(1.0, 3.0), (0.0, 0.2)], ids=["unsure", "sure"])
def test_adaptvis_is_scalingvis_with_the_weight_it_chose(
    threshold: float, weight: float, answer: Any
) -> None:
    chooses = {"method": "adaptvis", "w1": 3.0, "w2": 0.2, "threshold": threshold}
    for name in BESIDE_ADAPTVIS:
        found = answer([OTHERS[name], chooses])
        check(found, answer([OTHERS[name], {"method": "scalingvis", "w": weight}]), name)


def test_sgrs_that_rejects_nothing_leaves_no_trace(answer: Any) -> None:
    judge = {"method": "sgrs", "alpha": 1e-6, "layers": [0, 2]}
    for names in BESIDE_SGRS:
        entries = [OTHERS[name] for name in names]
        found, wanted = answer([*entries, judge]), answer(entries)
        assert (found.tokens, found.logprobs) == (wanted.tokens, wanted.logprobs), names
        receipts = found.last.receipt, wanted.last.receipt
        assert receipts[0].moved == receipts[1].moved, names
        assert receipts[0].rows == receipts[1].rows, names
