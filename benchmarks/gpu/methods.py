"""What every registered method costs: decode steps and prompts with it on all requests, or none.

Both are measured on one engine, one right after the other, so a ratio never compares two runs. A
method whose requests have branches is also compared with requests that are the same rows, each for
itself: what remains is the cost of its rule.
Compiling a plan is part of the server's work before a request starts, and of no figure here.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

from gpu.entries import Compiled, Methods
from gpu.serving import Bench, Stand, random_prompts
from gpu.session import FAULT, Figures, Session
from gpu.targets import BRANCHED, BY_NAME, PASSES, TOKEN
from saccade_interventions.plan import Plan
from saccade_kernels.batch import PAGE

CONTEXT = 1024
BATCHES = (1, 8, 32)
TOKENS, SAMPLES, PROMPTS = 16, 3, 5
SLACK = 32
"""Tokens of the first request by the time the last prompt is done, and more."""


def run_methods(session: Session, found: Figures, bench: Bench) -> None:
    """The smallest batch first, all methods at each; one that has failed is not tried further."""
    stand, _, name = bench.open(session, **_room(session))
    methods = Methods(stand.core.info)
    for batch in (1, 3) if session.dry else BATCHES:
        for method in methods.names if batch <= session.most else ():
            cells = found.setdefault(method, {})
            if any(FAULT in cell for cell in cells.values()):
                continue
            one = partial(_one, session, bench, methods, method, batch)
            cell = session.measure(cells, f"batch {batch}", 6, one)
            if cell is not None:
                session.say(f"{name}, {batch} x {method}: {_line(cell)}")
            else:
                stand.clear()


def _one(
    session: Session, bench: Bench, methods: Methods, method: str, batch: int, cell: Figures
) -> None:
    stand, _, _ = bench.open(session, **_room(session))
    one = methods.compile(method, _context(session))
    rows = _sequences(one.plan)
    cell |= {"entry": _brief(one.entry), "sequences": rows}
    cell |= _Pair(session, stand, one).measure(batch, rows["token"])
    for name, ratio in (
        (TOKEN.format(method, batch, bench.name), "step_ratio"),
        (BRANCHED.format(method, batch, bench.name), "rule_ratio"),
        (PASSES.format(method, bench.name), "passes_ratio"),
    ):
        if name in BY_NAME and ratio in cell:
            session.reach(name, cell[ratio])


class _Pair:
    """Requests with a method, and the same without."""

    def __init__(self, session: Session, stand: Stand, method: Compiled) -> None:
        self._session, self._stand, self._method = session, stand, method

    def measure(self, batch: int, rows: int) -> Figures:
        """Decode steps at a batch; prompts, one at a time, with the smallest.

        ``rows``: of a request with the method in each decode step.
        """
        self._fill(batch, True, 2, 400)  # what is compiled at first use
        found: Figures = {
            label: self._decode(batch, edited) for label, edited in (("none", False), ("on", True))
        }
        found["step_ratio"] = found["on"]["ms"] / found["none"]["ms"]
        if rows > 1:
            found["rows"] = self._decode(rows * batch, False)
            found["rule_ratio"] = found["on"]["ms"] / found["rows"]["ms"]
        return found | self._prompts() if batch == 1 else found

    def _decode(self, batch: int, edited: bool) -> Figures:
        """Milliseconds of a token of every request."""
        tokens, samples = (3, 2) if self._session.dry else (TOKENS, SAMPLES)
        filled = self._fill(batch, edited, tokens * samples + SLACK + batch)
        core = self._stand.core
        before = core.stats()
        taken = self._stand.token_seconds(tokens, samples)
        after = core.stats()
        self._stand.check_running(batch)
        self._stand.clear()
        middle = statistics.median(taken)
        generated = (after.generated_tokens - before.generated_tokens) / batch
        return {
            "ms": middle * 1e3,
            "spread": (max(taken) - min(taken)) / middle,
            "fill_ms": filled * 1e3,
            "steps_per_token": round((after.steps - before.steps) / generated, 2),
        }

    def _prompts(self) -> Figures:
        """Milliseconds until the first token of one request, in turns."""
        samples: dict[str, list[float]] = {"none": [], "on": [], "passes": []}
        for seed in range(2 if self._session.dry else PROMPTS):
            for kind, taken in samples.items():
                if kind == "passes":
                    taken.append(self._fill_passes(seed))
                else:
                    taken.append(self._fill(1, kind == "on", 2, seed))
                self._stand.clear()
        middle = {kind: statistics.median(taken) for kind, taken in samples.items()}
        return {
            "prompt": {f"{kind}_ms": taken * 1e3 for kind, taken in middle.items()},
            "prompt_ratio": middle["on"] / middle["none"],
            "passes_ratio": middle["on"] / middle["passes"],
        }

    def _fill_passes(self, seed: int) -> float:
        """Start a request and its branches, each as a request of its own without a plan."""
        model = self._stand.core.info
        (prompt,) = random_prompts(model, 1, _context(self._session), seed)
        branches = (list(branch.tokens) for branch in self._method.branches(prompt))
        prompts = [prompt, *branches]
        return self._stand.fill(prompts, [None] * len(prompts), 2)

    def _fill(self, batch: int, edited: bool, count: int, seed: int = 0) -> float:
        """Start requests; seconds until all have their first token."""
        model = self._stand.core.info
        prompts = random_prompts(model, batch, _context(self._session), seed)
        plans: list[Plan | None] = [self._method.plan if edited else None] * batch
        branches = [self._method.branches(prompt) if edited else () for prompt in prompts]
        return self._stand.fill(prompts, plans, count, branches)


def _room(session: Session) -> dict[str, Any]:
    """Limits of an engine in which each request may have a branch and rows of its own."""
    most = 8 if session.dry else session.most
    return {
        "max_num_seqs": 2 * most,
        "max_programs": 8 * most,
        "max_per_head_classes": most,
        "cache_tokens": 2 * most * (_context(session) + 4 * PAGE),
    }


def _context(session: Session) -> int:
    return 40 if session.dry else CONTEXT


def _sequences(plan: Plan) -> dict[str, int]:
    """What runs beside a request's own sequence: for its prompt, and for every token."""
    branches = plan.needs.branches
    staying = sum(1 for branch in branches if not branch.measures)
    return {"prompt": 1 + len(branches), "token": 1 + staying}


def _brief(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry without long lists of layers."""
    return {
        name: f"{len(value)} of them" if isinstance(value, list) and len(value) > 8 else value
        for name, value in entry.items()
    }


def _line(cell: Figures) -> str:
    """A cell in a few words."""
    step = f"step {cell['on']['ms']:.2f} ms, x{cell['step_ratio']:.2f}"
    if "prompt_ratio" not in cell:
        return step
    return f"{step}; prompt {cell['prompt']['on_ms']:.1f} ms, x{cell['prompt_ratio']:.2f}"
