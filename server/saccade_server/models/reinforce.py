"""Measuring, inside a forward pass, which heads look at the image, and amplifying them (VHR).

A pair is a sequence and its branch without the image, both of whose last prompt rows are in the
step. In each layer their head outputs are compared as soon as attention has them; the chosen heads
are amplified in what goes on to the output projection, so that the next layer is measured with the
gains of this one in force; and the gains are written into the control rows that the sequence
follows from the next step on. Nothing is read back.

The outputs that are compared, and then amplified, have been rounded to the model's dtype. Rows of
later steps are amplified by the kernels before they are rounded, so with a gain that is no power of
two a 16-bit output may be one rounding away from what the same row would get there.

The control rows hold the plan's other head edits while the step runs, so attention has applied
those and no measured gain: no row is amplified twice, whichever control row it follows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saccade_kernels.controls import Edit
from saccade_kernels.divergence import Reactivity
from saccade_kernels.tables import ControlTables
from saccade_server.models.attention import AttentionCall


@dataclass(frozen=True)
class Findings:
    """What was measured, of P pairs, by layer; layers that were not measured stay zero."""

    divergence: torch.Tensor  # float32 [P, layers, heads]: VHD, unfiltered
    selected: torch.Tensor  # uint8 [P, layers, heads]: 1 for an amplified head


@dataclass(frozen=True)
class HeadReinforcement:
    """An :class:`~saccade_server.models.attention.AttentionMeasure` for P pairs with one rule.

    Index tensors are int64 on the model's device. ``rows`` are the rows of this step that the gains
    act on, ``control_rows`` the rows of the control tables that later steps follow; each belongs to
    a pair. No control row belongs to two pairs, or to any other sequence.
    """

    layers: frozenset[int]
    amplified: frozenset[int]  # those of them whose heads get the gain
    gain: float
    reactivity: Reactivity
    with_image: torch.Tensor  # [P]: last prompt row of each sequence
    without: torch.Tensor  # [P]: that of its branch
    rows: torch.Tensor  # [R]
    row_pairs: torch.Tensor  # [R]
    control_rows: torch.Tensor  # [K]
    control_pairs: torch.Tensor  # [K]
    controls: ControlTables
    findings: Findings

    def before(self, call: AttentionCall) -> None:
        """Nothing: only outputs are compared."""

    def after(self, call: AttentionCall, output: torch.Tensor) -> torch.Tensor:
        """Measure the layer and amplify its heads; [tokens, heads, head_dim] in and out."""
        without = output.index_select(0, self.without)
        found = self.reactivity.divergence(output.index_select(0, self.with_image), without)
        self.findings.divergence.select(1, call.layer).copy_(found)
        if call.layer not in self.amplified:
            return output
        selected = self.reactivity.reactive(found, without)
        self.findings.selected.select(1, call.layer).copy_(selected)
        # In the tables' dtype, so that these rows and those of later steps get the same gain.
        gain = torch.where(selected, self.gain, 1.0).to(self.controls.gain.dtype)
        self._write(call.layer, gain, selected)
        rows = output.index_select(0, self.rows)
        work = torch.promote_types(rows.dtype, gain.dtype)
        rows = (rows.to(work) * gain.index_select(0, self.row_pairs)[..., None]).to(output.dtype)
        return output.index_copy(0, self.rows, rows)

    def _write(self, layer: int, gain: torch.Tensor, selected: torch.Tensor) -> None:
        """Multiply one layer of the control rows; ``gain`` and ``selected`` are [P, heads]."""
        factor = gain.index_select(0, self.control_pairs)
        _multiply(self.controls.gain.select(1, layer), self.control_rows, factor)
        _multiply(self.controls.shift.select(1, layer), self.control_rows, factor[..., None])
        flags = self.controls.edits.select(1, layer)
        head = selected.index_select(0, self.control_pairs) * Edit.HEAD.value
        flags.index_copy_(
            0, self.control_rows, flags.index_select(0, self.control_rows) | head.to(flags.dtype)
        )


def _multiply(table: torch.Tensor, rows: torch.Tensor, factor: torch.Tensor) -> None:
    table.index_copy_(0, rows, table.index_select(0, rows) * factor)
