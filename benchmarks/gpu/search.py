"""Search for launch configurations: moves from the current one, kept when they pay everywhere.

A key of tuning.json serves many shapes, so a configuration is judged by the geometric mean of its
times over those that ask for the key, and must be right on all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from gpu.accuracy import error
from gpu.problems import LAYER, Problem, Tables, bias_program, make_problem, var_program
from gpu.session import Figures, Session
from gpu.shapes import Heads
from gpu.timing import L2_BYTES, measure
from saccade_kernels import reference
from saccade_kernels.batch import PAGE, AttentionBatch
from saccade_kernels.gpu import tuning

ROUNDS = 2
GAIN = 0.99
"""A move must save one percent; less is noise."""

WRONG = 0.02
"""Relative distance from the float64 reference that no configuration in bf16 may have."""

Move = dict[str, Any]
Precompile = Callable[[Sequence[Any]], None]
"""Makes configurations ready to run, several at once."""

DECODE_MOVES: tuple[tuple[Move, ...], ...] = (
    tuple({"split": split} for split in (128, 256, 512, 1024)),
    tuple(
        {"num_warps": warps, "num_stages": stages} for warps in (2, 4, 8) for stages in (2, 3, 4, 5)
    ),
    tuple({"block_keys": keys} for keys in (32, 64)),
    tuple({"max_registers": most} for most in (0, 128, 168)),
    tuple({"max_splits": most} for most in (16, 32, 64, 96, 128)),
    tuple({"blocks": blocks} for blocks in (2, 3, 4, 6)),
)
"""Alternatives in one group exclude each other."""

PREFILL_MOVES: tuple[tuple[Move, ...], ...] = tuple(
    tuple(
        {"block_m": block, "num_warps": warps, "num_stages": stages, "descriptors": descriptors}
        for descriptors in (True, False)
        for stages in (2, 3, 4)
    )
    for block, warps in ((128, 8), (128, 4), (64, 4))
)

LISTED_PREFILL_MOVES: tuple[tuple[Move, ...], ...] = (
    tuple(
        {"block_m": block, "num_warps": warps, "num_stages": stages, "block_keys": keys}
        for block, warps in ((128, 8), (64, 4))
        for keys in (PAGE, 2 * PAGE)
        for stages in (2, 3)
    ),
)
"""Of the edited forms, which walk lists of keys and read by pointers."""

ONE_PAGE: Move = {"block_keys": PAGE, "specialised": False}

PLAIN_PREFILL_MOVES: tuple[tuple[Move, ...], ...] = (
    tuple(asdict(config) for config in tuning.PLAIN_CANDIDATES.values()),
    tuple(
        asdict(replace(tuning.PLAIN_CANDIDATES["two-pages"], num_warps=warps, num_stages=stages))
        for warps, stages in ((8, 3), (4, 2))
    ),
    *(tuple({**move, **ONE_PAGE} for move in group) for group in PREFILL_MOVES),
)
"""A move names all fields: what is right for some tiles is not for others."""


@dataclass(frozen=True)
class Shape:
    """A problem to judge by; ``classes`` 0: plain. Decodes have one query a sequence."""

    heads: Heads
    sequences: int
    context: int
    classes: int = 0
    decode: bool = True
    form: str = ""  # of a prefill, as tuning.json calls it: an edited step has several

    def launches(self, config: Any) -> Any:
        """The configuration for the form that is judged; others go as the table says."""
        return {self.form: config} if self.form else config

    def make(self, session: Session) -> tuple[Problem, AttentionBatch]:
        """The problem and the batch to run on it."""
        contexts = [self.context] * self.sequences
        queries = [1] * self.sequences if self.decode else contexts
        least = L2_BYTES if self.decode and not session.dry else 0
        problem = make_problem(self.heads, queries, contexts, session.device, torch.bfloat16, least)
        if not self.classes:
            return problem, problem.batch
        length = problem.batch.page_table.shape[1] * 64
        program = bias_program if self.form == "scores" else var_program
        tables = Tables.make(self.heads, program, 1, self.sequences, length, session.device)
        batch = problem.edited(tables, [1] * self.sequences)
        return problem, replace(batch, classes=self.classes)


Made = tuple[Shape, Problem, AttentionBatch]


def key_of(session: Session, shape: Shape) -> dict[str, Any] | None:
    """The key of tuning.json this shape asks for, seen where it is looked up."""
    asked: list[dict[str, Any]] = []
    small = replace(shape, sequences=1, context=min(shape.context, 64))
    problem, batch = small.make(session)
    with _watched(asked):
        problem.calls(batch)[0]()
    own = [key for key in asked if shape.form in ("", key.get("form"))]
    return own[0] if own else None


@contextmanager
def _watched(asked: list[dict[str, Any]]) -> Iterator[None]:
    find = tuning._find

    def watch(kernel: str, key: dict[str, Any]) -> dict[str, Any]:
        asked.append(dict(key))
        return find(kernel, key)

    tuning._find = watch
    try:
        yield
    finally:
        tuning._find = find


def search(
    session: Session,
    found: Figures,
    shapes: Sequence[Shape],
    base: Any,
    groups: Sequence[Sequence[Move]],
    precompile: Precompile,
) -> Any:
    """The best configuration from ``base`` on; every measurement goes into ``found``."""
    for shape in shapes:
        _check_small(session, shape, base)
    made = [(shape, *shape.make(session)) for shape in shapes]
    wanted = [
        problem.calls(batch, config=shape.launches(base))[0]() for shape, problem, batch in made
    ]
    first = _times(session, made, base, wanted)
    assert first is not None, "the configuration that is there already does not run"
    tried = found.setdefault("tried", {})
    tried[_key(base)] = {"us": [t * 1e6 for t in first], "of_first": 1.0}
    best, names = base, {field.name for field in fields(base)}
    for _ in range(ROUNDS):
        before = best
        for group in groups:
            wishes = [{k: v for k, v in move.items() if k in names} for move in group]
            new = {_key(c): c for c in (replace(best, **wish) for wish in wishes)}
            new = {key: c for key, c in new.items() if key not in tried}
            if not new or session.left < 30:
                continue
            precompile(list(new.values()))
            for key, candidate in new.items():
                times = _times(session, made, candidate, wanted) if session.left > 15 else None
                tried[key] = {"us": None, "of_first": None}
                if times is not None:
                    score = _mean(times, first)
                    tried[key] = {"us": [t * 1e6 for t in times], "of_first": score}
                    if score < GAIN * tried[_key(best)]["of_first"]:
                        best = candidate
        if best == before:
            break
    for shape in shapes:
        _check_small(session, shape, best)
    found |= {"best": asdict(best), "of_first": tried[_key(best)]["of_first"]}
    session.say(f"{found['of_first']:.3f} of the time before: {_key(best)}")
    return best


def compile_one(session: Session, shape: Shape, config: Any) -> None:
    """Run one sequence of the shape once, so that its kernels are in the cache on disk."""
    problem, batch = replace(shape, sequences=1).make(session)
    problem.calls(batch, config=shape.launches(config))[0]()
    if session.device.type == "cuda":
        torch.cuda.synchronize()


def _times(
    session: Session,
    made: Sequence[Made],
    config: Any,
    wanted: Sequence[torch.Tensor],
) -> list[float] | None:
    """Seconds on each problem; None if one does not compile or comes out different."""
    times = []
    try:
        for (shape, problem, batch), right in zip(made, wanted, strict=True):
            calls = problem.calls(batch, config=shape.launches(config))
            if error(calls[0](), right) > WRONG:
                session.say(f"WRONG with {_key(config)}")
                return None
            times.append(measure(calls, session.device).seconds)
    except Exception as failure:  # too much shared memory, or a form the compiler refuses
        session.say(f"{_key(config)} fails: {repr(failure)[:120]}")
        if not session.dry:
            torch.cuda.synchronize()  # raises if the GPU is gone: then the part ends
        return None
    return times


def _check_small(session: Session, shape: Shape, config: Any) -> None:
    """Compare with float64 where that is affordable."""
    small = replace(shape, sequences=2, context=min(shape.context, 700))
    problem, batch = small.make(session)
    got = problem.calls(batch, config=shape.launches(config))[0]()
    key, value = (t.double() for t in problem.sets[0])
    oracle: Callable[..., torch.Tensor] = reference.decode if shape.decode else reference.prefill
    right = oracle(
        problem.query.double(),
        key,
        value,
        replace(batch, derived={}),
        LAYER,
        shape.heads.dim**-0.5,
    )
    assert error(got, right) <= WRONG, f"{shape} is wrong under {config}"


def _mean(times: Sequence[float], first: Sequence[float]) -> float:
    logs = [math.log(t / f) for t, f in zip(times, first, strict=True)]
    return math.exp(sum(logs) / len(logs))


def _key(config: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in asdict(config).items())


def base_config(kernel: str, key: dict[str, Any] | None) -> Any:
    """What tuning.json has for the key; anything where the reference stands in for kernels."""
    kind = tuning.DecodeConfig if kernel == "decode" else tuning.PrefillConfig
    if key is None:
        return kind(4, 3, 256, 32) if kernel == "decode" else kind(64, 4, 3)
    return kind(**tuning._find(kernel, key))
