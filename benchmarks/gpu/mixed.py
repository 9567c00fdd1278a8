"""Plain and edited requests in one batch: what the neighbours get, and what it costs them."""

from __future__ import annotations

import statistics

from gpu.serving import Bench, Stand, random_prompts, var_plan
from gpu.session import Figures, Session
from gpu.steps import step_time
from saccade_interventions.plan import Plan

ALONE = "a plain request in a mixed batch: equal tokens as alone, {}"
SAME = "a plain request in a mixed batch: equal tokens as in a plain batch, {}"
COST = "a plain request in a mixed batch: time per token against a plain batch, {}"
BATCH, CONTEXT, TOKENS, TRIALS = 8, 1024, 48, 3


def goals(name: str) -> list[tuple[str, str, str, float]]:
    """Of one model."""
    return [
        (ALONE.format(name), "of all", ">=", 1.0),
        (SAME.format(name), "of all", ">=", 1.0),
        (COST.format(name), "x", "<=", 1.01),
    ]


def run_mixed(session: Session, found: Figures, bench: Bench) -> None:
    """One plain request among seven with different plans.

    With random weights the best two logits often lie within rounding, so tokens may differ from
    those of a batch of another size, whose matrix products add in another order; a batch of the
    same size without any plan tells what the plans alone do.
    """
    stand, model, name = bench.open(session)
    batch, context, tokens = (3, 40, 6) if session.dry else (BATCH, CONTEXT, TOKENS)
    plans: list[Plan | None] = [
        var_plan(model, context, 0.2 + 0.1 * index) for index in range(batch - 1)
    ]
    found["trials"] = []
    for trial in range(TRIALS):
        prompts = random_prompts(model, batch, context, seed=100 + trial)
        mixed = _last(stand, prompts, [*plans, None], tokens)
        plain = _last(stand, prompts, [None] * batch, tokens)
        alone = _last(stand, prompts[-1:], [None], tokens)
        again = _last(stand, prompts, [*plans, None], tokens)
        share = {
            "alone": _equal(mixed, alone),
            "plain batch": _equal(mixed, plain),
            "plain batch and alone": _equal(plain, alone),
            "again": _equal(mixed, again),
        }
        found["trials"].append(share)
        session.reach(ALONE.format(name), share["alone"])
        session.reach(SAME.format(name), share["plain batch"])
    ratios = []
    for _ in range(TRIALS):
        prompts = random_prompts(model, batch, context, seed=200)
        plain_ms = step_time(session, stand, prompts, [None] * batch)["ms"]
        ratios.append(step_time(session, stand, prompts, [*plans, None])["ms"] / plain_ms)
    found["time_against_plain_batch"] = ratios
    session.reach(COST.format(name), statistics.median(ratios))
    session.say(f"{name} mixed: {found}")


def _last(
    stand: Stand, prompts: list[list[int]], plans: list[Plan | None], tokens: int
) -> list[int]:
    """Tokens of the last request."""
    stand.clear()
    for prompt, plan in zip(prompts, plans, strict=True):
        name = stand.submit(prompt, tokens, plan)
    return stand.run()[name]


def _equal(first: list[int], second: list[int]) -> float:
    """Share of tokens before the first difference."""
    pairs = enumerate(zip(first, second, strict=True))
    return next((i for i, (a, b) in pairs if a != b), len(first)) / len(first)
