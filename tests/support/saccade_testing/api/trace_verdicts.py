"""What the values of a trace's fields do, by the class that declares them."""

from typing import Any

from saccade_kernels.thresholds import default_threshold
from saccade_testing.api.bodies import PICTURE, image_part
from saccade_testing.api.fakes import INFO
from saccade_testing.api.verdicts import Verdict, number, switch

SIZE = INFO.hidden_size
CONVERSATION = [
    {"role": "system", "content": "Be brief. USER:"},  # a marker of roles that is known
    {"role": "user", "content": [image_part(PICTURE), {"type": "text", "text": "Hi"}]},
]
"""Has all that a trace may need."""

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Rowed": ("masses", {}),
    "Layered": ("masses", {}),
    "ByHead": ("masses", {}),
    "Masses": ("masses", {}),
    "Attention": ("attention", {}),
    "HeatMaps": ("heatmaps", {}),
    "Columns": ("columns", {}),
    "Saliency": ("saliency", {}),
    "Projections": ("projections", {"directions": [[1] * SIZE]}),
    "LogitLens": ("logit_lens", {}),
    "Entropy": ("entropy", {}),
    "TokenShares": ("token_shares", {"tokens": [[5]]}),
    "Divergence": ("vhd", {}),
    "VisualAttention": ("vas", {}),
    "Sinks": ("sinks", {}),
}
"""Class -> a kind that has its fields, and what it has anyway."""


def trace_body(owner: str, name: str, value: list[Any]) -> dict[str, Any]:
    """Fields of a chat with the one ``value``, or without, in a field of its trace."""
    given = {name: value[0]} if value else {}
    if owner == "TraceOptions":
        beside = "sinks" if name == "entropy" else "entropy"
        trace = {beside: True, **given}
    elif owner == "RowRange":
        trace = {"entropy": {"rows": given}}
    else:
        kind, anyway = KINDS[owner]
        anyway = {} if name == "artifact" else anyway
        trace = {kind: anyway | given}
    return {"messages": CONVERSATION, "trace": trace}


KIND = Verdict([True, {}], [False], [1, "x", [], {"x": 1}])
LAYERS = Verdict(
    [[0], [2, 1]], [[0, 1, 2, 3], [3, 2, 1, 0]], [[], [4], [0, 0], [-1], [0.5], 5, "all", {}]
)
RESIDUALS = Verdict([[0], [4]], [], [[], [5], [0, 0], 5, "all"])
TAU = number([1, 3.5], [default_threshold(SIZE)], [0, -1, 1001, True])
KEYS = Verdict(
    ["image", "question", "answer", "all", [[0, 3], [4, 6]]],
    ["prompt"],
    ["x", [], [3, 1], [[3, 1]], [[0, 3], [2, 5]], [[0, 9999]], [[0, 1, 2]], 5, {}],
)
RANGE = Verdict([[0, 2]], [], [[2, 1], [1, 1], [0], [0, 1, 2], [0, 9999], [-1, 1], "x", 5])
TRACES = {
    **{
        f"TraceOptions.{name}": KIND
        for name in (
            *("masses", "attention", "heatmaps", "columns", "logit_lens", "entropy"),
            *("vhd", "vas", "saliency", "sinks"),
        )
    },
    "TraceOptions.projections": Verdict(
        [{"directions": [[1] * SIZE]}], [], [True, False, {}, 1, "x", []]
    ),
    "TraceOptions.token_shares": Verdict([{"tokens": [[5]]}], [], [True, {}, 1, "x", []]),
    "TraceOptions.max_bytes": number([], [2**24, 2**30, 5e6], [0, -1, 1.5, True]),
    "TraceOptions.encoding": Verdict(["base64"], ["list"], ["hex", True, 5]),
    "TraceOptions.delivery": Verdict(["link"], ["auto", "inline"], ["mail", True, 5]),
    "Rowed.rows": Verdict(
        ["all", "prompt", {"answer": [0, 2]}, {"prompt": [1, 3]}], ["answer"], ["x", 5, [], {}]
    ),
    "RowRange.answer": RANGE,
    "RowRange.prompt": RANGE,
    "Layered.layers": LAYERS,
    "ByHead.heads": LAYERS,
    "ByHead.reduce": Verdict(
        [[], ["layer"], ["layer", "head"]],
        [["head"]],
        [["row"], ["head", "head"], "head", 5, {}],
    ),
    "Masses.sinks": Verdict(["keep"], ["group"], ["drop", True, 5]),
    "Masses.tau": TAU,
    "Masses.recent": number([0, 3, 5.0], [8], [-1, 1.5, True]),
    "Attention.keys": KEYS,
    "Columns.keys": KEYS,
    "Saliency.keys": KEYS,
    "HeatMaps.images": Verdict([], [[0]], [[], [1], [0, 0], 0, "x"]),
    "HeatMaps.sinks": Verdict(["mark", "drop"], ["keep"], ["group", True, 5]),
    "HeatMaps.tau": TAU,
    "Projections.artifact": Verdict(refused=["x", 5, "sha256:" + "0" * 64]),
    "Projections.directions": Verdict(
        [[[2] + [0] * (SIZE - 1)]],
        [[[3] * SIZE]],
        [[], [[1]], [[0] * SIZE], [["x"] * SIZE], 5, "x"],
        null=False,
    ),
    "Projections.site": Verdict(
        ["attention_output", "mlp_output"], ["residual"], ["attention", 5, True]
    ),
    "LogitLens.top": number([1, 20, 2.0], [5], [0, 21, 1.5, True]),
    "Entropy.layers": RESIDUALS,
    "TokenShares.tokens": Verdict([[[6]], [[5], [6, 7]]], [], [[], [[999]], [["x"]], 5, "x", {}]),
    "Divergence.top": number([1, 3.0], [2], [0, 1.5, True]),
    "VisualAttention.layers": LAYERS,
    "VisualAttention.with_first": switch(),
    "Sinks.layers": LAYERS,
    "Sinks.tau": TAU,
}
