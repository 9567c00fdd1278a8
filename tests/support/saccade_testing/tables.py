"""Tables filled row by row, and mass edits on their own: the engine writes many rows at once, and
attention edits masses between two products.
"""

from dataclasses import fields

import torch

from saccade_kernels.controls import Program
from saccade_kernels.edits import apply_masses, class_members, mass_tables
from saccade_kernels.residual import ResidualProgram
from saccade_kernels.residual_tables import ResidualTables
from saccade_kernels.tables import ControlTables


def write_row(
    tables: ControlTables | ResidualTables, row: int, program: Program | ResidualProgram
) -> None:
    """Put a program into a row of its tables."""
    for field in fields(program):
        value = torch.from_numpy(getattr(program, field.name))
        getattr(tables, field.name)[row].copy_(value)
    if isinstance(program, Program):
        assert isinstance(tables, ControlTables)
        tables.edits[row].copy_(torch.from_numpy(program.head_edits()))


def edit_masses(
    attention: torch.Tensor,
    controls: ControlTables,
    rows: torch.Tensor,
    tags: torch.Tensor,
    layer: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention [seqs, heads, queries, keys] with its masses moved, and which rows' really moved.

    ``rows``: control row of each query, int [seqs, queries]; ``tags``: key classes [seqs, keys].
    """
    tables = mass_tables(controls, rows, slice(layer, layer + 1))[0]
    return apply_masses(attention, *tables, class_members(tags, attention.dtype))
