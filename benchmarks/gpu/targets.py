"""What the GPU's figures are wanted to be, by part: ratios within one run on one card.

Parts say by name which figure they have; the names are here alone. Imports nothing, so that targets
of parts that have not run are known too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

HEADS = ("32/32", "28/4")
WIDTHS = (4096, 3584)
MODELS = ("llava", "qwen")

RIGHT = "kernel cases that are right on the chip"
EXACT = "kernel cases whose plain rows are bit for bit plain"
PASSED = "tests marked gpu that pass"

STEP = "decode step over the read floor, {}, {}"
EDITED = "decode step with VAR on every request, over none, {}"
PROMPT = "prompt of {} over its floor, {}"
QUESTION = "prompt of {} with VAR on the question's rows, over plain, {}"
MANY = "decode step of 32 requests with 32 plans, over one plan, {}"
ALONE = "a plain request beside edited ones: equal tokens as alone, {}"
SAME = "a plain request beside edited ones: equal tokens as in a plain batch, {}"
COST = "a plain request beside edited ones: time of a token, over a plain batch, {}"
LAUNCHES = "launches of a decode step beyond ten a layer, {}"
GAP = "gap between two decode steps, {}"
AGAINST = "tokens per second with VAR, over patched transformers eager, batch {}, {}"
SERIAL = "tokens per second with VAR at batch 8, over patched eager one by one, {}"

TOKEN = "token with {} on every request, over none, batch {}, {}"
BRANCHED = "token with {} on every request, over its rows without a rule, batch {}, {}"
PASSES = "prompt with {}, over the prompts that it needs without a rule, {}"

BANDWIDTH = "paged decode, share of the best bandwidth, {}, heads {}"
DECODE_EDITED = "decode with a mass or score edit on all, over none, {}, heads {}"
EIGHT_CLASSES = "decode with a mass edit of 8 key classes, over 2, heads {}"
PROGRAMS = "decode kernel with 32 programs in the batch, over one, heads {}"
CUDNN = "plain causal prefill at 4k to 16k, speed over SDPA cuDNN, heads {}"
FEW = "prefill, mass edit on the question's rows, over plain, {}, heads {}"
ALL = "prefill, mass edit on all rows, over plain, {}, heads {}"
SALIENCY = "saliency of 5 candidates at 1k, one layer, speed over autograd through eager"
MASKS = "grammars' masks of 32 rows of 152k tokens, over a copy of these logits"
RESIDUALS = "one residual edit on each of 8k rows, share of copy bandwidth, width {}"
SMALL_BANDWIDTH = "small kernels of a layer on 8k rows, share of copy bandwidth, width {}"
SMALL_FASTER = "small kernels of a layer on one row, time over plain PyTorch, width {}"
WEIGHTS = "weights that products of up to 8 rows read, share of the read rate, {}"
SINKS = "sink detection of a layer on a prompt of 1k, time over plain PyTorch, width {}"

STEPS = {
    "1x1024": (1.25, 1.2),
    "8x1024": (1.25, 1.2),
    "32x1024": (1.2, 1.15),
    "32x4096": (1.15, 1.08),
}
"""Bounds and what would be better still."""

PROMPTS = {1024: (1.2, 1.1), 4096: (1.15, 1.1)}


SHARES = {"28/4": {"32x4096": 0.88, "8x4096": 0.8}, "32/32": {"32x4096": 0.9}}
"""Of the best bandwidth that a plain decode is to read with, by heads and shape."""

EDITED_DECODES = {
    "28/4": {"32x4096": 1.10, "8x4096": 1.10, "1x1024": 1.30},
    "32/32": {"32x4096": 1.03, "8x4096": 1.03, "1x1024": 1.15},
}
"""Bounds of a decode with an edit over one without, by heads and shape."""

EDITED_PREFILLS = {
    FEW: {"1x1024": 1.40, "1x4096": 1.10, "1x16384": 1.05},
    ALL: {"1x1024": 1.9, "1x4096": 1.5, "1x16384": 1.4},
}
"""Likewise of prefills, of all heads."""


TOKENS = {"act": 1.5, "dola": 1.25, "sgrs": 2.5}
"""Bounds of methods whose rules run behind or inside a captured step, greedy."""

BRANCHED_TOKENS = {"vcd": 1.15, "pai_contrast": 1.15}
"""Of those that have a second row a token: over the cost of both."""

PROMPT_PASSES = {"vhr": 1.05, "vcd": 1.05, "act": 1.05}

RULE_BATCHES = (1, 8)


@dataclass(frozen=True)
class Goal:
    """A figure and its bound. ``stretch``: what would be better still."""

    name: str
    unit: str
    sign: str  # "<=" or ">="
    bound: float
    stretch: float | None = None

    def worse(self, one: float, other: float) -> float:
        """Of several values of a goal the worst counts."""
        return max(one, other) if self.sign == "<=" else min(one, other)


def _engine(model: str) -> dict[str, tuple[Goal, ...]]:
    """Of one model's shape."""
    steps = [Goal(STEP.format(at, model), "x", "<=", *bound) for at, bound in STEPS.items()]
    prompts = [Goal(PROMPT.format(n, model), "x", "<=", *bound) for n, bound in PROMPTS.items()]
    few = [Goal(QUESTION.format(n, model), "x", "<=", 1.05, 1.02) for n in PROMPTS]
    return {
        f"{model}_steps": (*steps, Goal(EDITED.format(model), "x", "<=", 1.03)),
        f"{model}_prompts": (*prompts, *few),
        f"{model}_mixed": (
            Goal(COST.format(model), "x", "<=", 1.01),
            Goal(SAME.format(model), "of all", ">=", 1.0),
            Goal(ALONE.format(model), "of all", ">=", 1.0),
        ),
        f"{model}_profile": (
            Goal(LAUNCHES.format(model), "", "<=", 15),
            Goal(GAP.format(model), "us", "<=", 10),
        ),
    }


def _rules(model: str) -> tuple[Goal, ...]:
    """Of methods with rules, on one model's shape."""
    tokens = [(TOKEN, *bound) for bound in TOKENS.items()]
    tokens += [(BRANCHED, *bound) for bound in BRANCHED_TOKENS.items()]
    return (
        *(
            Goal(name.format(method, batch, model), "x", "<=", bound)
            for name, method, bound in tokens
            for batch in RULE_BATCHES
        ),
        *(
            Goal(PASSES.format(method, model), "x", "<=", bound)
            for method, bound in PROMPT_PASSES.items()
        ),
    )


def _heads(sign: str, bound: float, *names: str) -> tuple[Goal, ...]:
    return tuple(Goal(name.format(heads), "x", sign, bound) for name in names for heads in HEADS)


def _shapes(sign: str, name: str, bounds: Mapping[str, Mapping[str, float]]) -> Iterator[Goal]:
    for heads, shapes in bounds.items():
        for shape, bound in shapes.items():
            yield Goal(name.format(shape, heads), "x", sign, bound)


GOALS: dict[str, tuple[Goal, ...]] = {
    "tests": (Goal(PASSED, "of all", ">=", 1.0),),
    "accuracy": (Goal(RIGHT, "of all", ">=", 1.0), Goal(EXACT, "of all", ">=", 1.0)),
    **_engine("llava"),
    **_engine("qwen"),
    "llava_methods": _rules("llava"),
    "qwen_methods": _rules("qwen"),
    "llava_programs": (Goal(MANY.format("llava"), "x", "<=", 1.03),),
    "llava_peers": (
        Goal(AGAINST.format(1, "llava"), "x", ">=", 5.0),
        Goal(AGAINST.format(8, "llava"), "x", ">=", 5.0),
        Goal(SERIAL.format("llava"), "x", ">=", 35.0),
    ),
    "decode": (
        *_shapes(">=", BANDWIDTH, SHARES),
        *_shapes("<=", DECODE_EDITED, EDITED_DECODES),
        *_heads("<=", 1.03, EIGHT_CLASSES, PROGRAMS),
    ),
    "prefill": (
        *_heads(">=", 0.9, CUDNN),
        *(
            goal
            for name, bounds in EDITED_PREFILLS.items()
            for goal in _shapes("<=", name, dict.fromkeys(HEADS, bounds))
        ),
    ),
    "masks": (Goal(MASKS, "x", "<=", 0.7),),
    "saliency": (Goal(SALIENCY, "x", ">=", 20.0),),
    "layers": (
        *(Goal(SMALL_BANDWIDTH.format(width), "of copy", ">=", 0.8) for width in WIDTHS),
        *(Goal(SMALL_FASTER.format(width), "x", "<=", 0.5) for width in WIDTHS),
    ),
    "products": tuple(Goal(WEIGHTS.format(model), "of read", ">=", 0.89) for model in MODELS),
    "sinks": tuple(Goal(SINKS.format(width), "x", "<=", 0.3) for width in WIDTHS),
    "residuals": tuple(Goal(RESIDUALS.format(width), "of copy", ">=", 0.8) for width in WIDTHS),
}
"""By part."""

BY_NAME = {goal.name: goal for goals in GOALS.values() for goal in goals}
