"""Tokens per second with VAR on every request, prompts included: the engine and transformers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from gpu.models import build
from gpu.serving import Bench, Stand, random_prompts, var_plan
from gpu.session import Figures, Session
from gpu.steps import step_time
from gpu.targets import AGAINST, SERIAL
from gpu.transformers_peer import NAME, PatchedVar, generate, generate_together, stop_together

CONTEXT, TOKENS = 1024, 64
BATCHES = (1, 8)
GOALS_OF = "llava"
"""The model whose peers the goals are about; the other's are measured if there is time."""

OPTIONS: dict[str, dict[str, Any]] = {
    "as served": {},
    "no CUDA graphs": {"enforce_eager": True},
    "no overlap": {"overlap": False},
    "batch-invariant": {"batch_invariant": True},
}
PEERS = ("eager with VAR", "sdpa plain", "eager plain")
CONTINUOUS = "continuous batching, plain"


def run_tokens(session: Session, found: Figures, bench: Bench) -> None:
    """The engine's figures."""
    for batch in (*BATCHES, 32):
        for label in ("plain", "var") if batch <= session.most else ():
            one = partial(_tokens, session, bench, batch, label)
            session.measure(found, f"{label}, batch {batch}", 6, one)


def _tokens(session: Session, bench: Bench, batch: int, label: str, cell: Figures) -> None:
    stand, model, _ = bench.open(session)
    context, tokens = _sizes(session)
    plan = var_plan(model, context) if label == "var" else None
    rates = []
    for seed in range(4):  # the first one warms up
        prompts = random_prompts(model, batch, context, 300 + seed)
        taken = _seconds(partial(_serve, stand, prompts, plan, tokens))
        rates.append(batch * tokens / taken)
    cell |= _rates(rates[1:])
    session.say(f"{label}, batch {batch}: {cell['tokens_per_second']:.0f} tokens a second")


def run_peers(session: Session, found: Figures, bench: Bench) -> None:
    """transformers' figures, on a model nobody has touched; the engine's memory is freed."""
    bench.close()
    context, _ = _sizes(session)
    model = build(bench.shape, session.device)
    for label in PEERS:
        patched = PatchedVar(model, context) if label == PEERS[0] else None
        model.set_attn_implementation(NAME if patched else label.split()[0])
        for batch in BATCHES:
            one = partial(_peer, session, model, batch)
            session.measure(found, f"{label}, batch {batch}", 15, one)
        if patched:
            patched.remove()
            _compare(session, found, bench.name)
    for batch in (*BATCHES, 32):
        one = partial(_continuous, session, bench, batch)
        session.measure(found, f"{CONTINUOUS}, batch {batch}", 20, one)
    for label, cell in found.items():
        if "tokens_per_second" in cell:
            session.say(f"{label}: {cell['tokens_per_second']:.1f} tokens a second")


def _compare(session: Session, found: Figures, name: str) -> None:
    ours = session.known.get(f"{name}_tokens", {})

    def rate(cells: Figures, label: str) -> float | None:
        return cells.get(label, {}).get("tokens_per_second")

    for batch in BATCHES:
        own, peer = rate(ours, f"var, batch {batch}"), rate(found, f"{PEERS[0]}, batch {batch}")
        if own and peer and name == GOALS_OF:
            session.reach(AGAINST.format(batch, name), own / peer)
    # The published code takes one request at a time, so eight of them wait for each other.
    own, peer = rate(ours, "var, batch 8"), rate(found, f"{PEERS[0]}, batch 1")
    if own and peer and name == GOALS_OF:
        session.reach(SERIAL.format(name), own / peer)


def _peer(session: Session, model: Any, batch: int, cell: Figures) -> None:
    context, tokens = _sizes(session)
    cell |= _rates(_peer_rates(session, model, batch, context, tokens))


def _continuous(session: Session, bench: Bench, batch: int, cell: Figures) -> None:
    """transformers' own server loop, on a model of its own: it changes the one that it has."""
    context, tokens = _sizes(session)
    model = build(bench.shape, session.device)
    model.set_attn_implementation("sdpa")
    rates = []
    for seed in range(2 if session.dry else 3):  # the first one warms up
        drawn = torch.Generator().manual_seed(seed)
        prompts = torch.randint(10, bench.shape.vocabulary, (batch, context), generator=drawn)
        taken = _seconds(partial(generate_together, model, prompts.tolist(), tokens))
        rates.append(batch * tokens / taken)
    stop_together(model)
    cell |= _rates(rates[1:])


def _peer_rates(session: Session, model: Any, batch: int, context: int, tokens: int) -> list[float]:
    rates = []
    for seed in range(2 if session.dry else 3):
        drawn = torch.Generator().manual_seed(seed)
        vocabulary = model.config.get_text_config().vocab_size
        prompts = torch.randint(10, vocabulary, (batch, context), generator=drawn)
        prompts = prompts.to(model.device)
        taken = _seconds(partial(generate, model, prompts, tokens))
        rates.append(batch * tokens / taken)
    return rates[1:]


def run_options(session: Session, found: Figures, bench: Bench) -> None:
    """Engine options one by one, at small batches where launches count most."""
    bench.close()
    for label, options in OPTIONS.items():
        one = partial(_one_choice, session, bench, options)
        cell = session.measure(found, label, 45, one)
        steps = {name: round(c["ms"], 3) for name, c in (cell or {}).items() if "x" in name}
        session.say(f"{bench.name} {label}: {steps} ms")
        bench.close()


def _one_choice(session: Session, bench: Bench, options: dict[str, Any], cell: Figures) -> None:
    context, _ = _sizes(session)
    began = time.perf_counter()
    stand, model, _ = bench.open(session, **options)
    cell["start_s"] = time.perf_counter() - began
    for batch in (1, 8):
        prompts = random_prompts(model, batch, context)
        for kind, plan in (("plain", None), ("var", var_plan(model, context))):
            name = f"{kind}, {batch}x{context}"
            cell[name] = step_time(session, stand, prompts, [plan] * batch)


def _sizes(session: Session) -> tuple[int, int]:
    return (40, 5) if session.dry else (CONTEXT, TOKENS)


def _serve(stand: Stand, prompts: list[list[int]], plan: Any, tokens: int) -> None:
    stand.clear()
    for prompt in prompts:
        stand.submit(prompt, tokens, plan)
    stand.run()


def _seconds(call: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _rates(rates: list[float]) -> Figures:
    middle = statistics.median(rates)
    return {"tokens_per_second": middle, "spread": (max(rates) - min(rates)) / middle}
