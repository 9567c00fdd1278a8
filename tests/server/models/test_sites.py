"""What acts and looks at a residual has one order: image features, stream edits, probes."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from saccade_kernels import ops
from saccade_kernels.stream_tables import StreamTables
from saccade_kernels.streams import StreamFlag, StreamProgram
from saccade_server.models.family import serve
from saccade_server.models.scratch import ScratchCache
from saccade_server.models.streams import StreamStep

ROWS, PLACES = 5, frozenset({1, 3})


@dataclass(frozen=True)
class Recorder:
    layers: frozenset[int] = PLACES
    seen: dict[int, torch.Tensor] = field(default_factory=dict)

    def observe(self, layer: int, hidden: torch.Tensor) -> None:
        self.seen[layer] = hidden.clone()


def tables(layers: int, size: int) -> StreamTables:
    """Row 1 adds twice a row's root mean square along a direction, before layer 1."""
    made = StreamTables.allocate(2, layers, size)
    made.bank[1] = torch.nn.functional.normalize(torch.randn(size), dim=0)
    program = StreamProgram.identity(layers + 1)
    program.append(1, 1, (1.0, 2.0, -math.inf, math.inf), StreamFlag.RELATIVE)
    made.write(1, program)
    return made


def test_a_probe_sees_what_the_layer_reads(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("qwen3_vl")
    served = serve(copy.deepcopy(model))
    streams = StreamStep(tables(served.layers, served.hidden_size), frozenset({1}))
    visual = torch.arange(ROWS) % 2 == 1
    level = 5 * torch.randn(int(visual.sum()), served.hidden_size, dtype=served.dtype)
    embeddings = served.embed(torch.arange(20, 20 + ROWS))
    positions = torch.arange(ROWS).expand(served.axes, -1)

    def run(edited: bool) -> tuple[Recorder, torch.Tensor]:
        recorder = Recorder()
        step = ScratchCache(served, 1, 8).step([(0, ROWS)], (recorder,))
        if not edited:
            return recorder, served.forward(embeddings, positions, step)
        batch = replace(step.batch, control_rows=torch.ones(ROWS, dtype=torch.int32))
        step = replace(step, batch=batch, streams=streams)
        return recorder, served.forward(embeddings, positions, step, visual, [level])

    (plain, before), (edited, after) = run(edited=False), run(edited=True)
    shown = plain.seen[1].clone()
    shown[visual] += level
    rows = torch.ones(ROWS, dtype=torch.int32)
    wanted = ops.stream(shown, rows, streams.tables, 1)
    assert not torch.equal(wanted, shown)
    torch.testing.assert_close(edited.seen[1], wanted, rtol=0, atol=1e-9)
    assert not torch.equal(edited.seen[3], plain.seen[3])  # it is what goes on
    assert not torch.equal(after, before)
