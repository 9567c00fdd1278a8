"""Sites read from tapes hold what probes see (test_sites.py), and reading changes no bit."""

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch

from saccade_kernels.residual import ResidualFlag, ResidualProgram, SiteKind, site_of
from saccade_kernels.residual_tables import ResidualTables
from saccade_server.models.attention import ForwardStep
from saccade_server.models.base import ServedModel
from saccade_server.models.family import serve
from saccade_server.models.readout import KEPT, site_rows
from saccade_server.models.residual import Reach, ResidualStep
from saccade_server.models.scratch import ScratchCache
from saccade_server.models.tape import FixedTape, Readers, RowsTape, together, wanted_of
from saccade_testing import tiny
from saccade_testing.tables import write_row

ROWS, EDITED = 5, 2
AT = torch.tensor([4, 1, 2])


@pytest.fixture
def family(decoder_family: str) -> str:
    """Every family that has a decoder of its own."""
    return decoder_family


@dataclass(frozen=True)
class Recorder:
    kind: SiteKind
    layers: frozenset[int]
    seen: dict[int, torch.Tensor] = field(default_factory=dict)

    def observe(self, layer: int, hidden: torch.Tensor) -> None:
        self.seen[layer] = hidden.clone()


def edits(layers: int, size: int) -> ResidualStep:
    """Program 1 moves rows at every site of the edited layer."""
    made = ResidualTables.allocate(2, layers, size)
    made.bank[1] = torch.nn.functional.normalize(torch.randn(size), dim=0)
    program = ResidualProgram.identity(layers)
    sites = {site_of(kind, EDITED) for kind in SiteKind}
    for site in sites:
        program.append(site, 1, (1.0, 2.0, -math.inf, math.inf), ResidualFlag.RELATIVE)
    write_row(made, 1, program)
    return ResidualStep(made, frozenset(sites))


@dataclass
class Run:
    """A model, five rows of it every second of which is edited, and the step they run in."""

    model: ServedModel
    residuals: ResidualStep | None

    def __call__(self, **changes: Any) -> torch.Tensor:
        model = self.model
        # Decodes: those are what fixed places are for.
        step = ScratchCache(model, ROWS, 1).step([(row, 1) for row in range(ROWS)])
        batch = replace(step.batch, control_rows=self.programs)
        step = replace(step, batch=batch, residuals=self.residuals, **changes)
        positions = torch.arange(ROWS).expand(model.axes, -1)
        return model.logits(model.forward(self.embeddings(step), positions, step))

    def embeddings(self, step: ForwardStep) -> torch.Tensor:
        out = step.tape.residuals[0, :ROWS] if isinstance(step.tape, FixedTape) else None
        return self.model.embed(torch.arange(20, 20 + ROWS), out)

    @property
    def programs(self) -> torch.Tensor:
        return torch.arange(ROWS, dtype=torch.int32) % 2

    def read(self, kind: SiteKind, layer: int, kept: torch.Tensor) -> torch.Tensor:
        found = kept.index_select(0, AT)
        programs = self.programs.index_select(0, AT)
        return site_rows(self.model.decoder, kind, layer, found, programs, self.residuals)


@pytest.mark.parametrize("edited", [False, True])
def test_sites_are_read_as_probes_see_them(family: str, edited: bool) -> None:
    model = serve(tiny.build(family))
    size, depth = model.hidden_size, model.layers
    run = Run(model, edits(depth, size) if edited else None)
    plain = run()
    fixed = FixedTape(model.decoder.spec, torch.full((depth, 8, size), math.nan).double()).of(ROWS)
    caught: dict[tuple[SiteKind, int], torch.Tensor] = {}
    places = [(kind, layer) for kind in SiteKind for layer in range(depth)]
    places.append((SiteKind.RESIDUAL, depth))

    def catch(kind: SiteKind, layer: int, made: torch.Tensor) -> None:
        caught[kind, layer] = run.read(kind, layer, made)

    readers = {(KEPT[kind], layer): [partial(catch, kind, layer)] for kind, layer in places}
    rows = RowsTape(AT, 1, wanted_of(model.decoder.spec))
    assert torch.equal(run(tape=fixed), plain)
    assert torch.equal(run(tape=together([Readers(readers), rows])), plain)
    assert together([]) is None
    assert together([rows]) is rows
    for kind in SiteKind:
        layers = frozenset(layer for own, layer in places if own is kind)
        recorder = Recorder(kind, layers)
        run(probes=(recorder,))
        for layer in layers:
            wanted = recorder.seen[layer].index_select(0, AT)
            assert torch.equal(run.read(kind, layer, fixed.read(KEPT[kind], layer)), wanted)
            assert torch.equal(caught[kind, layer], wanted)
            if kind is SiteKind.RESIDUAL and layer >= rows.first:
                assert torch.equal(rows.read(KEPT[kind], layer), wanted)


def test_a_fixed_tape_of_edits_everywhere_is_the_same(family: str) -> None:
    """The form of a captured step that edits every site, for rows that edit none."""
    model = serve(tiny.build(family))
    size, depth = model.hidden_size, model.layers
    run = Run(model, None)
    tape = FixedTape(model.decoder.spec, torch.zeros(depth, 8, size).double()).of(ROWS)
    run(tape=tape)
    names = [(kind, layer) for kind in SiteKind for layer in range(depth)]
    wanted = [run.read(*name, tape.read(KEPT[name[0]], name[1])) for name in names]
    tables = ResidualTables.allocate(2, depth, size)
    run.residuals = ResidualStep(tables, Reach.EVERYWHERE.sites(depth))
    run(tape=tape)
    found = [run.read(*name, tape.read(KEPT[name[0]], name[1])) for name in names]
    assert all(map(torch.equal, found, wanted))
