"""Every pair of methods: it composes to what compose.py says, or it is refused with the reason.

What a composed plan does is computed key by key from the two plans alone, each with its own
classes, and compared with the composed plan on the same scores.
"""

from dataclasses import replace
from itertools import product

import pytest
import torch
from msgspec import structs

from saccade_interventions.artifacts import read_artifact
from saccade_interventions.base import PROBE_SIDE
from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Prompt
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.image_views import ImageView
from saccade_interventions.phases import Phase
from saccade_interventions.plan import Plan
from saccade_interventions.registry import Registry
from saccade_interventions.rules import (
    ConfidenceRule,
    ContrastRule,
    MeasuredGains,
    RecentRule,
    SinkRule,
)
from saccade_kernels import edits
from saccade_kernels.controls import NEVER_ATTEND, PER_HEAD_CLASSES
from saccade_kernels.tables import ControlTables
from saccade_testing.plans import betas_of, context_of, residual_with
from saccade_testing.tables import edit_masses, write_row

METHODS = tuple(Registry.discover().methods)
TEXT = "<s>USER: .......... Describe the image. ASSISTANT:"
START, END = TEXT.index("."), TEXT.index(" Describe")
VIEW = ImageView(0, (START, END), 2, 5, (PROBE_SIDE, PROBE_SIDE))
CHARACTERS = [(i, i + 1) for i in range(len(TEXT))]
PROMPT = Prompt(len(TEXT), ((START, END),), TEXT, CHARACTERS, views=(VIEW,))
KEYS = PROMPT.length + 7
SINKS = [0, START + 2, END + 3, KEYS - 5]
ROWS = (START, END + 1, PROMPT.length - 1, PROMPT.length, KEYS - 1)  # of every phase
LAYER = 2

CONTRASTS = {"vcd", "pai_contrast", "dola"}
DISTANCE = "keys that depend on the distance"
ONE_CONTRAST = "only one of them can contrast"
OWN = "own distribution"
REFUSED = {
    **{frozenset({a, b}): ONE_CONTRAST for a, b in product(CONTRASTS, CONTRASTS)},
    **{frozenset({a, b}): OWN for a, b in product(CONTRASTS, {"sgrs", "adaptvis"})},
    **{frozenset({"m3id", other}): "both contrast the next token" for other in CONTRASTS},
    **{frozenset({"m3id", other}): OWN for other in ("sgrs", "adaptvis")},
    frozenset({"m3id"}): "only one of them can contrast more with every token",
    frozenset({"var"}): "one of them under a condition",
    frozenset({"locore"}): DISTANCE,
    frozenset({"vhr"}): "only one of them can choose heads by measuring",
    frozenset({"sgrs"}): "only one of them can reject candidates",
    frozenset({"adaptvis"}): "only one of them can depend on the first token's confidence",
    frozenset({"vhr", "adaptvis"}): "runs the last prompt row twice",
    frozenset({"act", "adaptvis"}): "runs the last prompt row twice",
    frozenset({"act"}): "only one of them can find sinks of single heads",
    frozenset({"look_at", "var"}): "moves attention to keys that look_at",
    frozenset({"act", "var"}): "both move attention in layer 0, head 0, by classes",
}
"""Pairs that exclude each other wherever they act, and a part of the reason."""


@pytest.fixture
def entries(registry: Registry):
    """The context, and for each method an entry that shows on any model, with its artifact."""
    model = replace(context_of(PROMPT).model, fingerprint="sha256:" + "1" * 64)
    probes = {name: method.probe(model) for name, method in registry.methods.items()}
    files = (read_artifact(probe.artifact) for probe in probes.values() if probe.artifact)
    known = {found.digest: found for found in files}
    context = replace(context_of(PROMPT), model=model, artifacts=known.get)
    return context, {name: probe.entry for name, probe in probes.items()}


@pytest.fixture
def compiled(entries, registry: Registry):
    """``compiled(*names)``: the plan of a request with these methods."""
    context, known = entries

    def run(*names: str) -> Plan:
        return compile_plan(registry.parse([known[name] for name in names]), context)

    return run


def tables(plan: Plan) -> ControlTables:
    found = ControlTables.allocate(1 + len(Phase), plan.shape)
    for row, phase in enumerate(Phase, start=1):
        write_row(found, row, plan.program(phase))
    return found


def classes(plan: Plan, row: int, hidden: torch.Tensor) -> torch.Tensor:
    """Class of every key as the query row sees it, by what each rule of the plan says."""
    found = torch.full((KEYS,), plan.generated_tag)
    found[: PROMPT.length] = torch.from_numpy(plan.base_tags()).long()
    rule, recent = plan.rule(SinkRule), plan.rule(RecentRule)
    if rule is not None:
        phi = hidden[:, list(rule.dims)].abs().amax(-1) / hidden.square().mean(-1).sqrt()
        sinks = phi >= rule.threshold
        sinks &= torch.arange(KEYS) < (KEYS if rule.generated else PROMPT.length)
        remap = dict(rule.remap)
        changed = found.clone()
        for key in sinks.nonzero().flatten().tolist():
            changed[key] = remap.get(int(found[key]), int(found[key]))
        if rule.require is None or (changed == rule.require).any():
            found = changed
    if recent is not None and row >= PROMPT.length:
        nearest = 0 if recent.with_self else 1
        for key in range(recent.start, row + 1):
            if nearest <= row - key <= recent.width:
                found[key] = dict(recent.remap).get(int(found[key]), int(found[key]))
    return found


def shown(plan: Plan) -> Plan:
    """The plan with what depends on the first token's confidence done in any case."""
    rule = plan.rule(ConfidenceRule)
    return plan if rule is None else replace(plan, scores=plan.scores + rule.unsure)


class Shown:
    """What a plan does to the query row at some position, on given numbers."""

    def __init__(self, plan: Plan, hidden: torch.Tensor) -> None:
        self.plan, self.hidden, self.tables = plan, hidden, tables(shown(plan))

    def score(self, scores: torch.Tensor, row: int) -> torch.Tensor:
        betas = betas_of(self.plan, row + 1)
        return edits.edit_scores(scores, self.tables, *self._row(row), betas, LAYER)

    def mass(self, attention: torch.Tensor, row: int) -> torch.Tensor:
        at, tags = self._row(row)
        if any(
            edit.per_head_classes for edit in self.plan.masses
        ):  # then all heads are; see ACT.probe
            tags = torch.arange(row + 1)[None] % PER_HEAD_CLASSES
        return edit_masses(attention, self.tables, at, tags, LAYER)[0]

    def _row(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        at = torch.tensor([[1 + list(Phase).index(self.plan.phase(row))]])
        found = classes(self.plan, row, self.hidden)
        assert not (found == NEVER_ATTEND).any()
        return at, found[None, : row + 1]


def check_attention(parts: list[Shown], whole: Shown) -> None:
    """Score edits add; mass edits follow the softmax in the order of the request."""
    for row in ROWS:
        z = 2 * torch.randn(1, 4, 1, row + 1, dtype=torch.float64)
        scores = z + sum(part.score(z, row) - z for part in parts)
        torch.testing.assert_close(whole.score(z, row), scores, rtol=0, atol=1e-5)
        attention = before = scores.softmax(-1)
        for part in parts:
            attention = part.mass(attention, row)
        torch.testing.assert_close(whole.mass(before, row), attention, rtol=0, atol=1e-6)


def check_heads(parts: list[Shown], whole: Shown) -> None:
    """Head edits and residual edits chain in the order of the request."""
    one, other = (part.tables for part in parts)
    torch.testing.assert_close(whole.tables.gain, one.gain * other.gain)
    shift = other.gain[..., None] * one.shift + other.shift
    torch.testing.assert_close(whole.tables.shift, shift)
    plans = [part.plan for part in parts]
    residuals = [replace(e, source=i) for i, plan in enumerate(plans) for e in plan.residuals]
    assert list(whole.plan.residuals) == residuals
    assert {v.digest for v in whole.plan.vectors} == {v.digest for p in plans for v in p.vectors}


def check_rules(parts: list[Plan], whole: Plan) -> None:
    """Every rule is there, knows its intervention, and is unchanged but for key classes."""
    for index, part in enumerate(parts):
        for rule in part.rules:
            found = whole.rule(type(rule))
            assert found is not None
            if isinstance(rule, SinkRule):  # several become one
                assert found.source <= index
                continue
            assert found.source == index
            kept = {"source": 0}
            if hasattr(rule, "remap"):
                kept["remap"] = rule.remap
            if isinstance(rule, ConfidenceRule):
                assert {edit.source for edit in (*found.unsure, *found.sure)} <= {index}
                kept |= {"unsure": rule.unsure, "sure": rule.sure}
            assert structs.replace(found, **kept) == rule
    assert {type(rule) for rule in whole.rules} == {type(r) for part in parts for r in part.rules}


def test_every_pair(compiled):
    hidden = residual_with(KEYS, SINKS)
    alone = {name: Shown(compiled(name), hidden) for name in METHODS}
    for pair in product(METHODS, METHODS):
        reason = REFUSED.get(frozenset(pair))
        if reason is not None:
            with pytest.raises(InterventionError, match=reason) as caught:
                compiled(*pair)
            assert (caught.value.code, caught.value.param) == (Code.CONFLICT, "interventions[1]")
            continue
        whole, parts = Shown(compiled(*pair), hidden), [alone[name] for name in pair]
        assert {edit.source for edit in whole.plan.edits} <= {0, 1}, pair
        check_attention(parts, whole)
        check_heads(parts, whole)
        check_rules([part.plan for part in parts], whole.plan)


def test_measured_gains_beside_an_edited_branch(entries, registry: Registry):
    """The branch would run without the gains that its sequence has."""
    context, known = entries
    vcd, vhr = {**known["vcd"], "edit_branch": True}, known["vhr"]
    for pair in ([vcd, vhr], [vhr, vcd]):
        with pytest.raises(InterventionError, match="edits its branch too") as caught:
            compile_plan(registry.parse(pair), context)
        assert (caught.value.code, caught.value.param) == (Code.CONFLICT, "interventions[1]")
    plain = registry.parse([{**vcd, "edit_branch": False}, vhr])
    assert compile_plan(plain, context).rule(MeasuredGains) is not None
    assert (
        compile_plan(registry.parse([vcd, known["pai"]]), context).rule(ContrastRule).branch.edited
    )


def test_the_cases_exercise_what_they_should(compiled):
    """VAR's gates open, windows hold keys, and a sink is found in each of its places."""
    hidden = residual_with(KEYS, SINKS)
    var, locore = Shown(compiled("var"), hidden), compiled("locore")
    for row in ROWS[1:]:
        attention = torch.rand(1, 4, 1, row + 1, dtype=torch.float64)
        attention /= attention.sum(-1, keepdim=True)
        assert (var.mass(attention, row) != attention).any()
    assert len(set(classes(var.plan, KEYS - 1, hidden).tolist())) == 4
    assert len(set(classes(locore, KEYS - 1, hidden).tolist())) == 2
    assert len(set(classes(locore, PROMPT.length, hidden).tolist())) == 1


def test_a_neutral_partner_is_no_partner(registry: Registry, entries):
    """Where a method has a neutral strength it excludes nobody and changes nothing."""
    context, known = entries
    alone = {name: compile_plan(registry.parse([known[name]]), context) for name in METHODS}
    for name, method in registry.methods.items():
        for other in METHODS if method.neutral is not None else ():
            neutral = {**known[name], **method.neutral}
            beside = compile_plan(registry.parse([neutral, known[other]]), context)
            assert beside.fingerprint() == alone[other].fingerprint(), (name, other)
