"""What a scheduler needs besides sequences: tables that nobody reads, and small plans."""

from typing import Any

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.phases import parse_rows
from saccade_interventions.plan import Plan
from saccade_interventions.rules import HeadSinkRule
from saccade_kernels.controls import ControlShape


class NoTables:
    """Nobody reads what is written here."""

    def write_program(self, row: int, program: Any) -> None: ...

    def open_tags(self, row: int, plan: Any) -> None: ...

    def open_per_head(self, row: int, tag_row: int, plan: Any) -> None: ...


def biased(length: int, bias: float) -> Plan:
    """One program, another one for each bias."""
    builder = PlanBuilder(ControlShape(2, 2, 4), length, 0)
    image = builder.tag([(0, 1)])
    builder.score(((1, (0,)),), [image], parse_rows("last+generated"), bias=bias)
    return builder.build()


def apart(length: int) -> Plan:
    """Key classes of single heads: one of their tables, and the whole prompt in one step."""
    builder = PlanBuilder(ControlShape(2, 2, 4), length, 0)
    sites = ((1, (0,)),)
    builder.per_head_mass(sites, [(0, 1, 0.5), (1, 1, -0.5)], parse_rows("prompt"))
    builder.rule(HeadSinkRule(sites, 0.5))
    return builder.build()
