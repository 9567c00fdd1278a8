"""Packages with methods, installed into a folder as pip would: modules and their dist-info."""

from collections.abc import Mapping
from pathlib import Path

HEAD = '''
from typing import Any, ClassVar, Literal

from saccade_interventions.base import Intervention
from saccade_interventions.context import Context
from saccade_interventions.phases import parse_rows
from saccade_interventions.plan import Plan
from saccade_interventions.rules import Branch, ContrastRule, Rule
from saccade_interventions.targets import all_images


class Theirs(Intervention):
    """What all methods here have in common."""

    title: ClassVar[str] = "Theirs"
    summary: ClassVar[str] = "A method of another package."
    paper: ClassVar[str] = "none"
    level: ClassVar[str] = "logits"
    needs_image: ClassVar[bool] = True
'''
"""What the modules of such packages begin with."""

NEAR = """

class Near(Theirs):
    example: ClassVar[dict[str, Any]] = {"method": "near"}
    neutral: ClassVar[dict[str, Any]] = {"alpha": 0.0, "gamma": 1.0}

    method: Literal["near"] = "near"
    alpha: float = 0.3
    gamma: float = 1.5

    def compile(self, context: Context) -> Plan:
        plan, model = context.plan(), context.model
        image = plan.tag(all_images(context))
        sites = tuple((layer, tuple(range(model.heads))) for layer in range(model.layers))
        if self.alpha:
            plan.score(sites, [image], parse_rows("last+generated"), absolute=self.alpha)
        if self.gamma != 1:
            branch = Branch("deleted")
            plan.rule(ContrastRule(own=self.gamma, other=self.gamma - 1, cutoff=0.1, branch=branch))
        return plan.build()
"""
"""A method on an edit and a rule that there are: PAI's two halves in one."""


METHOD = """

class Odd(Theirs):
    example: ClassVar[dict[str, Any]] = {"method": "odd"}

    method: Literal["odd"] = "odd"
    odd: bool = True

    def compile(self, context: Context) -> Plan:
        if not self.odd:
            return context.plan().build()
"""
"""The beginning of a method that does what no method may, with its defaults."""


def install(site: Path, package: str, source: str, points: Mapping[str, str]) -> None:
    """Put a package of one module into a folder; ``points`` maps entry points to its classes."""
    folder, about = site / package, site / f"{package}-1.0.dist-info"
    folder.mkdir(parents=True)
    about.mkdir()
    (folder / "__init__.py").write_text(f'"""Methods."""\n{HEAD}{source}')
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    listed = "".join(f"{name} = {package}:{kind}\n" for name, kind in points.items())
    (about / "entry_points.txt").write_text(f"[saccade.interventions]\n{listed}")
    (about / "INSTALLER").write_text("pip\n")
    (about / "RECORD").write_text(f"{package}/__init__.py,,\n{package}-1.0.dist-info/METADATA,,\n")
