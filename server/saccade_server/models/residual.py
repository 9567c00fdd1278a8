"""Editing the residual stream and what layers add to it, where sites.py lets a step do so."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from saccade_kernels.residual import SiteKind, kind_of, site_of, sites_of
from saccade_kernels.residual_tables import ResidualTables


class Reach(enum.IntEnum):
    """Which sites a form of a captured step edits, whatever its rows need of them."""

    NOWHERE = 0
    RESIDUALS = 1
    EVERYWHERE = 2

    def sites(self, layers: int) -> frozenset[int]:
        """Numbers of the sites of a model."""
        if self is Reach.EVERYWHERE:
            return frozenset(range(sites_of(layers)))
        if self is Reach.RESIDUALS:
            return frozenset(site_of(SiteKind.RESIDUAL, layer) for layer in range(layers + 1))
        return frozenset()

    @classmethod
    def of(cls, step: ResidualStep | None) -> Reach:
        """The least that a step needs."""
        if step is None:
            return cls.NOWHERE
        residuals = all(kind_of(site) is SiteKind.RESIDUAL for site in step.sites)
        return cls.RESIDUALS if residuals else cls.EVERYWHERE


@dataclass(frozen=True)
class ResidualStep:
    """What a step does; its rows follow the tables' rows as attention's do.

    ``sites``: no row of the step has an edit at another one.
    """

    tables: ResidualTables
    sites: frozenset[int]
