"""Control and tag tables on the device; :mod:`~saccade_kernels.controls` says what they mean."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from saccade_kernels.controls import KEY_WEIGHTS, ControlShape, Program


@dataclass(frozen=True)
class ControlTables:
    """All programs in flight, on the device; field shapes are :class:`Program`'s behind [rows]."""

    scale: torch.Tensor
    absolute: torch.Tensor
    bias: torch.Tensor
    weight: torch.Tensor
    transform: torch.Tensor
    gate_weight: torch.Tensor
    gate_threshold: torch.Tensor
    gain: torch.Tensor
    shift: torch.Tensor
    edits: torch.Tensor  # uint8 [rows, L, H]: which of SCORE, MASS and HEAD a head makes

    @classmethod
    def allocate(
        cls, rows: int, shape: ControlShape, device: torch.device | str = "cpu"
    ) -> ControlTables:
        """Make tables of ``rows`` rows, every row the identity."""
        program = Program.identity(shape)
        tensors = {
            f.name: torch.from_numpy(getattr(program, f.name))
            .to(device)
            .expand(rows, *getattr(program, f.name).shape)
            .contiguous()
            for f in fields(program)
        }
        edits = torch.zeros(rows, shape.layers, shape.heads, dtype=torch.uint8, device=device)
        return cls(**tensors, edits=edits)


@dataclass(frozen=True)
class PerHeadTable:
    """Key classes of single heads, for a few sequences at a time; row 0 is for all the others.

    A listed head has classes of its own in place of the tags. They are what masses are of; score
    edits and :data:`NEVER_ATTEND` go by the tag in every head.
    """

    rows: torch.Tensor  # int32 [tag rows]: the row that a sequence has in the two below, 0: none
    heads: torch.Tensor  # uint8 [rows, layers, heads]: 1 for a listed head; row 0 has none
    classes: torch.Tensor  # uint8 [rows, layers, heads, max_len], by position in the sequence

    @classmethod
    def allocate(
        cls,
        tag_rows: int,
        rows: int,
        shape: ControlShape,
        max_len: int,
        device: torch.device | str = "cpu",
    ) -> PerHeadTable:
        """Make ``rows`` rows for a table of ``tag_rows`` sequences, none of which has one."""
        sites = (rows, shape.layers, shape.heads)
        return cls(
            rows=torch.zeros(tag_rows, dtype=torch.int32, device=device),
            heads=torch.zeros(sites, dtype=torch.uint8, device=device),
            classes=torch.zeros(*sites, max_len, dtype=torch.uint8, device=device),
        )


@dataclass(frozen=True)
class TagTable:
    """Key classes of the sequences that carry a plan, one row a sequence; row 0 is untagged.

    Tags belong to a sequence, not to a cache page: two requests with different plans may then
    share the pages of a common prefix. They are per layer because sinks differ by layer.
    """

    tags: torch.Tensor  # uint8 [rows, layers, max_len], by position in the sequence
    weights: torch.Tensor  # float32 [rows, KEY_WEIGHTS, max_len]: beta_sj of the score edit
    hides: torch.Tensor  # uint8 [rows]: 1 if some key of the sequence is never attended
    moved: torch.Tensor  # int32 [rows, layers, heads]: query rows whose masses really changed
    per_head: PerHeadTable | None = None  # made when first needed

    @classmethod
    def allocate(
        cls, rows: int, shape: ControlShape, max_len: int, device: torch.device | str = "cpu"
    ) -> TagTable:
        """Make ``rows`` rows of untagged sequences of up to ``max_len`` tokens."""
        return cls(
            tags=torch.zeros(rows, shape.layers, max_len, dtype=torch.uint8, device=device),
            weights=torch.zeros(rows, KEY_WEIGHTS, max_len, dtype=torch.float32, device=device),
            hides=torch.zeros(rows, dtype=torch.uint8, device=device),
            moved=torch.zeros(rows, shape.layers, shape.heads, dtype=torch.int32, device=device),
        )
