"""Tokens per second with VAR on every request, prompts included: the engine and transformers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from gpu.models import build
from gpu.serving import Bench, Stand, random_prompts, start_core, var_plan
from gpu.session import Figures, Session
from gpu.steps import step_time
from gpu.transformers_peer import NAME, PatchedVar, generate
from saccade_server.models.family import serve

CONTEXT, TOKENS = 1024, 64
BATCHES = (1, 8)
FACTORS = {1: 5.0, 8: 20.0}
AGAINST = "tokens per second with VAR, against patched transformers eager, batch {}, {}"
SERIAL = "tokens per second with VAR at batch 8, against patched eager one by one, {}"
GOALS_OF = "llava"
"""The model whose peers the goals are about; the other's are measured if there is time."""


def goals(name: str) -> list[tuple[str, str, str, float]]:
    """Of one model."""
    if name != GOALS_OF:
        return []
    rows = [(AGAINST.format(batch, name), "x", ">=", FACTORS[batch]) for batch in BATCHES]
    return [*rows, (SERIAL.format(name), "x", ">=", FACTORS[8])]


def run_tokens(session: Session, found: Figures, bench: Bench) -> None:
    """The engine's figures."""
    stand, model, _ = bench.open(session)
    context, tokens = _sizes(session)
    for batch in (*BATCHES, 32):
        if batch > session.options.most:
            continue
        for label, plan in (("plain", None), ("var", var_plan(model, context))):
            rates = []
            for seed in range(4):  # the first one warms up
                prompts = random_prompts(model, batch, context, 300 + seed)
                rates.append(
                    batch * tokens / _seconds(lambda p=prompts, q=plan: _serve(stand, p, q, tokens))
                )
            found[f"{label}, batch {batch}"] = _rates(rates[1:])
    session.say(f"{bench.name}: { ({k: round(v['tokens_per_second']) for k, v in found.items()}) }")


def run_peers(session: Session, found: Figures, bench: Bench) -> None:
    """transformers' figures, on a model nobody has touched; the engine's memory is freed."""
    bench.close()
    context, tokens = _sizes(session)
    model = build(bench.shape, session.device)
    for label in ("eager with VAR", "sdpa plain", "eager plain"):
        patched = None
        if label == "eager with VAR":
            patched = PatchedVar(model, context)
        model.set_attn_implementation(NAME if patched else label.split()[0])
        for batch in BATCHES:
            if session.has(15, f"{label}, batch {batch}, {bench.name}"):
                rates = _peer_rates(session, model, batch, context, tokens)
                found[f"{label}, batch {batch}"] = _rates(rates)
        if patched:
            patched.remove()
            _compare(session, found, bench.name)
    session.say(f"{bench.name} peers: {found}")


def _compare(session: Session, found: Figures, name: str) -> None:
    ours = session.figures.get(f"{name}_tokens", {})
    for batch in BATCHES:
        own, peer = ours.get(f"var, batch {batch}"), found.get(f"eager with VAR, batch {batch}")
        if own is None or peer is None:
            continue
        peer["ours_over_it"] = own["tokens_per_second"] / peer["tokens_per_second"]
        if name == GOALS_OF:
            session.reach(AGAINST.format(batch, name), peer["ours_over_it"])
    # The published code takes one request at a time, so eight of them wait for each other.
    own, peer = ours.get("var, batch 8"), found.get("eager with VAR, batch 1")
    if name == GOALS_OF and own is not None and peer is not None:
        session.reach(SERIAL.format(name), own["tokens_per_second"] / peer["tokens_per_second"])


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
    choices: dict[str, dict[str, Any]] = {
        "as served": {},
        "no CUDA graphs": {"enforce_eager": True},
        "no overlap": {"overlap": False},
    }
    for label, options in choices.items():
        if not session.has(45, f"options {label}"):
            continue
        cell = found.setdefault(label, {})
        _one_choice(session, cell, bench, options)
        steps = {name: round(c["ms"], 3) for name, c in cell.items() if "x" in name}
        session.say(f"{bench.name} {label}: {steps} ms")
        bench.close()


def _one_choice(session: Session, cell: Figures, bench: Bench, options: dict[str, Any]) -> None:
    context, _ = _sizes(session)
    model = serve(build(bench.shape, session.device))
    began = time.perf_counter()
    stand = Stand(start_core(session, model, 40_000, **options))
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
