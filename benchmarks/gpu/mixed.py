"""Plain and edited requests in one batch: what the neighbours get, and what it costs them."""

from __future__ import annotations

import statistics
from functools import partial

from gpu.serving import Bench, Stand, random_prompts, var_plan
from gpu.session import Figures, Session
from gpu.steps import step_time
from gpu.targets import ALONE, COST, SAME
from saccade_interventions.plan import Plan
from saccade_server.models.base import ServedModel

BATCH, CONTEXT, TOKENS, TRIALS = 8, 1024, 48, 3


def run_mixed(session: Session, found: Figures, bench: Bench) -> None:
    """One plain request among seven with different plans.

    With random weights the best two logits often lie within rounding, so tokens may differ from
    those of a batch of another size, whose matrix products add in another order; a batch of the
    same size without any plan tells what the plans alone do.
    """
    time = partial(_time, session, bench)
    session.measure(found, "time", 8, time)
    for trial in range(TRIALS):
        session.measure(found, f"trial {trial}", 4, partial(_tokens, session, bench, trial))


def _plans(session: Session, model: ServedModel) -> tuple[int, list[Plan | None]]:
    batch, context, _ = _sizes(session)
    return context, [var_plan(model, context, 0.2 + 0.1 * index) for index in range(batch - 1)]


def _sizes(session: Session) -> tuple[int, int, int]:
    return (3, 40, 6) if session.dry else (BATCH, CONTEXT, TOKENS)


def _time(session: Session, bench: Bench, cell: Figures) -> None:
    stand, model, name = bench.open(session)
    context, plans = _plans(session, model)
    batch = len(plans) + 1
    ratios = []
    for _ in range(TRIALS):
        prompts = random_prompts(model, batch, context, seed=200)
        plain_ms = step_time(session, stand, prompts, [None] * batch)["ms"]
        ratios.append(step_time(session, stand, prompts, [*plans, None])["ms"] / plain_ms)
    cell["against_plain_batch"] = ratios
    session.reach(COST.format(name), statistics.median(ratios))


def _tokens(session: Session, bench: Bench, trial: int, cell: Figures) -> None:
    stand, model, name = bench.open(session)
    context, plans = _plans(session, model)
    batch, tokens = len(plans) + 1, _sizes(session)[2]
    prompts = random_prompts(model, batch, context, seed=100 + trial)
    mixed = _last(stand, prompts, [*plans, None], tokens)
    plain = _last(stand, prompts, [None] * batch, tokens)
    alone = _last(stand, prompts[-1:], [None], tokens)
    again = _last(stand, prompts, [*plans, None], tokens)
    cell |= {
        "alone": _equal(mixed, alone),
        "plain batch": _equal(mixed, plain),
        "plain batch and alone": _equal(plain, alone),
        "again": _equal(mixed, again),
    }
    session.reach(ALONE.format(name), cell["alone"])
    session.reach(SAME.format(name), cell["plain batch"])


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
