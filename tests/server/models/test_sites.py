"""Sites are where transformers' modules have them, and what acts and looks there has an order."""

import copy
import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from saccade_kernels import ops
from saccade_kernels.residual import ResidualFlag, ResidualProgram, SiteKind, site_of
from saccade_kernels.residual_tables import ResidualTables
from saccade_server.models.family import serve
from saccade_server.models.residual import ResidualStep
from saccade_server.models.scratch import ScratchCache
from saccade_testing import tiny
from saccade_testing.tables import write_row

ROWS, PLACES = 5, frozenset({1, 3})
BEFORE_1 = site_of(SiteKind.RESIDUAL, 1)


@pytest.fixture
def family(decoder_family: str) -> str:
    """Every family that has a decoder of its own."""
    return decoder_family


@dataclass(frozen=True)
class Recorder:
    kind: SiteKind = SiteKind.RESIDUAL
    layers: frozenset[int] = PLACES
    seen: dict[int, torch.Tensor] = field(default_factory=dict)

    def observe(self, layer: int, hidden: torch.Tensor) -> None:
        self.seen[layer] = hidden.clone()


def tables(layers: int, size: int) -> ResidualTables:
    """Row 1 adds twice a row's root mean square along a direction, before layer 1."""
    made = ResidualTables.allocate(2, layers, size)
    made.bank[1] = torch.nn.functional.normalize(torch.randn(size), dim=0)
    program = ResidualProgram.identity(layers)
    program.append(BEFORE_1, 1, (1.0, 2.0, -math.inf, math.inf), ResidualFlag.RELATIVE)
    write_row(made, 1, program)
    return made


def test_a_probe_sees_what_the_layer_reads() -> None:
    model = tiny.build("qwen3_vl")
    served = serve(copy.deepcopy(model))
    residuals = ResidualStep(tables(served.layers, served.hidden_size), frozenset({BEFORE_1}))
    visual = torch.arange(1, ROWS, 2)
    level = 5 * torch.randn(len(visual), served.hidden_size, dtype=served.dtype)
    embeddings = served.embed(torch.arange(20, 20 + ROWS))
    positions = torch.arange(ROWS).expand(served.axes, -1)

    def run(edited: bool) -> tuple[Recorder, torch.Tensor]:
        recorder = Recorder()
        step = ScratchCache(served, 1, 8).step([(0, ROWS)], (recorder,))
        if not edited:
            return recorder, served.forward(embeddings, positions, step)
        batch = replace(step.batch, control_rows=torch.ones(ROWS, dtype=torch.int32))
        step = replace(step, batch=batch, residuals=residuals)
        return recorder, served.forward(embeddings, positions, step, visual, [level])

    (plain, before), (edited, after) = run(edited=False), run(edited=True)
    shown = plain.seen[1].clone()
    shown[visual] += level
    rows = torch.ones(ROWS, dtype=torch.int32)
    wanted = ops.edit_residual(shown, rows, residuals.tables, BEFORE_1)
    assert not torch.equal(wanted, shown)
    torch.testing.assert_close(edited.seen[1], wanted, rtol=0, atol=1e-9)
    assert not torch.equal(edited.seen[3], plain.seen[3])  # it is what goes on
    assert not torch.equal(after, before)


EDITED, RANK = 2, 3


def module_of(model: Any, kind: SiteKind, layer: int) -> Any:
    """The transformers module whose output the residual gets: of post norms, where there are some.

    ``post_attention_layernorm`` is the norm before the MLP where the MLP has none behind it.
    """
    found = model.get_decoder().layers[layer]
    normed = hasattr(found, "post_feedforward_layernorm")
    if kind is SiteKind.ATTENTION_OUTPUT:
        return found.post_attention_layernorm if normed else found.self_attn
    return found.post_feedforward_layernorm if normed else found.mlp


@pytest.mark.parametrize("kind", [SiteKind.ATTENTION_OUTPUT, SiteKind.MLP_OUTPUT], ids=str)
def test_outputs_are_edited_where_the_residual_gets_them(family: str, kind: SiteKind) -> None:
    """A map of low rank in rows 1 and 3, by a hook on transformers' module and by the tables."""
    model = tiny.build(family)
    served = serve(copy.deepcopy(model))
    size = served.hidden_size
    read, write = torch.randn(2, RANK, size).double()
    site = site_of(kind, EDITED)
    made = ResidualTables.allocate(2, served.layers, size)
    made.bank[1 : 1 + 2 * RANK] = torch.cat([read, write])
    program = ResidualProgram.identity(served.layers)
    for at in range(RANK):
        flags = ResidualFlag.JOINED if at else ResidualFlag.NONE
        numbers = (2.0, 0.5, -math.inf, math.inf)
        program.append(site, 1 + at, numbers, flags, 1 + RANK + at)
    write_row(made, 1, program)
    rows = torch.arange(ROWS) % 2
    seen: list[torch.Tensor] = []

    def hook(module: Any, args: Any, output: Any) -> Any:
        own = output[0] if isinstance(output, tuple) else output
        r, w = read.float().double(), write.float().double()
        changed = own + rows[:, None] * ((own @ r.T + 0.5) @ w)
        seen.append(changed[0])
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    tokens = torch.arange(20, 20 + ROWS)
    plain = model(input_ids=tokens[None], use_cache=False).logits[0]
    module_of(model, kind, EDITED).register_forward_hook(hook)
    wanted = model(input_ids=tokens[None], use_cache=False).logits[0]
    assert (wanted[1:] - plain[1:]).abs().amax(-1).min() > 1e-4
    recorder = Recorder(kind, frozenset({0, EDITED}))
    step = ScratchCache(served, 1, 8).step([(0, ROWS)], (recorder,))
    step = replace(
        step,
        batch=replace(step.batch, control_rows=rows.int()),
        residuals=ResidualStep(made, frozenset({site})),
    )
    positions = torch.arange(ROWS).expand(served.axes, -1)
    found = served.logits(served.forward(served.embed(tokens), positions, step))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    assert recorder.seen.keys() == {0, EDITED}
    torch.testing.assert_close(recorder.seen[EDITED], seen[0], rtol=0, atol=1e-9)
