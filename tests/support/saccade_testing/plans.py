"""A small model, and a plan run on given scores: plan -> programs -> tables -> reference."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from saccade_interventions.context import Context, Prompt
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.phases import Phase
from saccade_interventions.plan import Plan
from saccade_interventions.rules import SinkRule
from saccade_kernels import edits
from saccade_kernels.controls import CLASSES, KEY_WEIGHTS, NEVER_ATTEND
from saccade_kernels.residual import ResidualFlag, ResidualProgram, SiteKind, site_of
from saccade_kernels.residual_tables import ResidualTables, edit_residual
from saccade_kernels.sinks import SinkTags, settle_tags, sink_scores
from saccade_kernels.tables import ControlTables
from saccade_testing.tables import edit_masses, write_row

MODEL = ModelFacts(layers=6, heads=4, kv_heads=2, head_dim=8, hidden_size=64, sink_dims=(7, 21))
PHASES = list(Phase)


def context_of(prompt: Prompt, **facts: Any) -> Context:
    """Context of a prompt; keywords change the model's facts."""
    return Context(replace(MODEL, **facts), prompt)


def tables_of(plan: Plan, exact: bool) -> ControlTables:
    """One row a phase, from 1. ``exact`` puts the plan's float64 numbers into them."""
    tables = ControlTables.allocate(1 + len(PHASES), plan.shape)
    for row, phase in enumerate(PHASES, start=1):
        write_row(tables, row, plan.program(phase))
    return _unrounded(tables, plan) if exact else tables


def _unrounded(tables: ControlTables, plan: Plan) -> ControlTables:
    tables = replace(tables, transform=tables.transform.double(), bias=tables.bias.double())
    tables = replace(
        tables,
        gate_weight=tables.gate_weight.double(),
        gate_threshold=tables.gate_threshold.double(),
        absolute=tables.absolute.double(),
    )
    used = slice(0, plan.classes)
    for row, phase in enumerate(PHASES, start=1):
        for name in ("absolute", "bias"):
            getattr(tables, name)[row].zero_()
        for edit in (e for e in plan.scores if phase in e.phases):
            for layer, heads in edit.sites:
                cells = np.ix_([row], [layer], heads, edit.classes)
                tables.absolute[cells] += edit.absolute
                tables.bias[cells] += edit.bias
        for moved in (e for e in plan.masses if phase in e.phases):
            for layer, heads in moved.sites:
                for head in heads:
                    tables.transform[row, layer, head, used, used] = torch.tensor(
                        moved.transform, dtype=torch.float64
                    )
                    for i, gate in enumerate(moved.gates):
                        weights = torch.tensor(gate.weights, dtype=torch.float64)
                        tables.gate_weight[row, layer, head, i, used] = weights
                        tables.gate_threshold[row, layer, head, i] = gate.threshold
    return tables


def tags_of(plan: Plan, layer: int, keys: int, hidden: torch.Tensor | None) -> torch.Tensor:
    """Classes of all keys in one layer, sinks found in ``hidden`` [keys, hidden_size]."""
    base = torch.full((keys,), plan.generated_tag, dtype=torch.int64)
    base[: plan.prompt_length] = torch.from_numpy(plan.base_tags()).long()
    rule = plan.rule(SinkRule)
    tags = base[None].to(torch.uint8)
    if rule is None or layer not in rule.layers or hidden is None:
        return tags.long()
    at = torch.arange(keys if rule.generated else plan.prompt_length)
    at = at[base[at] != NEVER_ATTEND]
    remap = torch.arange(CLASSES)[None].clone()
    for tag, as_sink in rule.remap:
        remap[0, tag] = as_sink
    found = SinkTags(
        slots=at,
        position=at,
        starts=torch.tensor([0, len(at)]),
        base=base[at],
        threshold=torch.tensor([rule.threshold]),
        tag_row=torch.zeros(1, dtype=torch.int64),
        remap=remap,
        require=torch.tensor([-1 if rule.require is None else rule.require]),
        whole=torch.ones(1, dtype=torch.uint8),
    )
    settle_tags(found, sink_scores(hidden, torch.tensor(rule.dims)), tags, torch.zeros(1))
    return tags.long()


def attend(
    plan: Plan | None,
    scores: torch.Tensor,
    layer: int = 2,
    hidden: torch.Tensor | None = None,
    exact: bool = False,
    softmax: bool = True,
) -> torch.Tensor:
    """Edited attention of causal ``scores`` [heads, keys, keys], as float64.

    ``softmax=False``: the scores are attention already, and only masses are edited.
    """
    keys = scores.shape[-1]
    future = torch.ones(keys, keys, dtype=torch.bool).triu(1)
    scores = scores.double()[None]
    if plan is None:
        return torch.softmax(scores.masked_fill(future, -torch.inf), -1)[0]
    tables = tables_of(plan, exact)
    tags = tags_of(plan, layer, keys, hidden)
    rows = torch.tensor([[1 + PHASES.index(plan.phase(i)) for i in range(keys)]])
    if softmax:
        scores = edits.edit_scores(scores, tables, rows, tags, betas_of(plan, keys), layer)
        scores = torch.softmax(scores.masked_fill(future, -torch.inf), -1)
    return edit_masses(scores, tables, rows, tags, layer)[0][0]


def betas_of(plan: Plan, keys: int) -> torch.Tensor:
    """Values of a plan's key weights, float32 [1, KEY_WEIGHTS, keys]."""
    found = torch.zeros(1, KEY_WEIGHTS, keys)
    for slot, own in enumerate(plan.key_weights):
        values = torch.from_numpy(own.unpack(plan.prompt_length))[:keys]
        found[0, slot, : len(values)] = values
    return found


def residual_with(keys: int, sinks: list[int]) -> torch.Tensor:
    """Residual stream [keys, 64] with massive activations at the given positions."""
    hidden = torch.randn(keys, 64, dtype=torch.float64).clamp(-2, 2)
    hidden[sinks, 7] = 40.0
    return hidden


def edited(
    plan: Plan,
    hidden: torch.Tensor,
    layer: int,
    phase: Phase,
    site: SiteKind = SiteKind.RESIDUAL,
) -> torch.Tensor:
    """What tables and reference make of the residual stream ``hidden`` [rows, 64]."""
    tables = ResidualTables.allocate(2, plan.shape.layers, 64, slots=99)
    program, slot = ResidualProgram.identity(plan.shape.layers), 0
    for edit in plan.residuals:
        if phase in edit.phases:
            slots = []
            for row in edit.rows:
                slot += 1
                slots.append(slot)
                vectors = plan.vectors_of(edit.direction)
                assert vectors is not None
                tables.bank[slot] = torch.from_numpy(vectors[row].copy())
            flags = ResidualFlag.SIGNED * edit.signed | ResidualFlag.RELATIVE * edit.relative
            flags |= ResidualFlag.KEEP_NORM * edit.keep_norm | ResidualFlag.JOINED * edit.joined
            flags |= ResidualFlag.DIAGONAL * edit.diagonal
            read, write = (*slots, None)[:2]
            assert read is not None
            program.append(
                site_of(edit.site, edit.layer),
                read,
                (edit.scale, edit.shift, edit.low, edit.high),
                ResidualFlag(flags),
                write,
                where=(edit.above, edit.below),
            )
    write_row(tables, 1, program)
    rows = torch.ones(len(hidden), dtype=torch.int32)
    return edit_residual(hidden, rows, tables, site_of(site, layer))
