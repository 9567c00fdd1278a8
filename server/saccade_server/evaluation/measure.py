"""One setting's answers as figures: every metric of every split, and what differs from none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from saccade_server.demo.splits import Split
from saccade_server.evaluation.asking import Reply
from saccade_server.evaluation.items import Item
from saccade_server.evaluation.scoring import METRICS, score
from saccade_server.evaluation.settings import Setting
from saccade_server.evaluation.statistics import (
    Bootstrap,
    Estimate,
    Table,
    columns_of,
    difference,
    estimate,
)


@dataclass(frozen=True)
class Figure:
    """A metric on one split; ``change`` is its difference from none."""

    estimate: Estimate
    change: Estimate | None
    by_seed: tuple[float | None, ...]


@dataclass(frozen=True)
class Measured:
    """Everything about one setting. ``figures``: by split, then by metric.

    ``changed``: share of answers that differ from those without interventions. ``status``: how many
    answers' receipts said what.
    """

    setting: Setting
    role: str
    figures: Mapping[Split, Mapping[str, Figure]]
    changed: float
    status: Mapping[str, int] = field(default_factory=dict)


class Scorer:
    """Scores settings on the same items; the first one scored is what others are compared with."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = items
        self._splits = {split: _Scenes(items, split) for split in _splits(items)}
        self._baseline: dict[Split, Table] = {}
        self._texts: list[str] = []

    def measure(self, setting: Setting, role: str, replies: Sequence[Reply]) -> Measured:
        """Figures of one setting; ``replies`` are in the items' order."""
        texts = [reply.text for reply in replies]
        tables = {split: scenes.table(texts) for split, scenes in self._splits.items()}
        first = not self._baseline
        if first:
            self._baseline, self._texts = tables, texts
        changed = sum(a != b for a, b in zip(texts, self._texts, strict=True)) / len(texts)
        status = Counter(name for reply in replies for name in set(reply.status))
        figures = {split: self._figures(split, table, first) for split, table in tables.items()}
        return Measured(setting, role, figures, changed, dict(status))

    def _figures(self, split: Split, table: Table, first: bool) -> dict[str, Figure]:
        scenes, baseline = self._splits[split], self._baseline[split]
        found = {}
        for metric in METRICS:
            value = estimate(metric, table, scenes.bootstrap)
            if value is not None:
                change = None if first else difference(metric, table, baseline, scenes.bootstrap)
                found[metric.name] = Figure(value, change, scenes.by_seed(metric, table))
        return found


class _Scenes:
    """The scenes of one split: which items belong to which, and how they are resampled."""

    def __init__(self, items: Sequence[Item], split: Split) -> None:
        self._items = [(at, item) for at, item in enumerate(items) if item.example.split is split]
        self._rows: dict[Any, int] = {}
        seeds: list[int] = []
        for _, item in self._items:
            key = (item.seed, item.example.scene)
            if key not in self._rows:
                self._rows[key] = len(self._rows)
                seeds.append(item.seed)
        self._seeds = np.array(seeds)
        self.bootstrap = Bootstrap(len(seeds))

    def table(self, texts: Sequence[str]) -> Table:
        """Counts by scene, [scenes, columns]."""
        table = np.zeros((len(self._rows), len(columns_of({}))))
        for at, item in self._items:
            table[self._rows[item.seed, item.example.scene]] += columns_of(score(item, texts[at]))
        return table

    def by_seed(self, metric: Any, table: Table) -> tuple[float | None, ...]:
        """The metric on the scenes of each seed alone."""
        values: list[float | None] = []
        for seed in np.unique(self._seeds):
            sums = table[self._seeds == seed].sum(0)
            above, below = sums @ columns_of(metric.above), sums @ columns_of(metric.below)
            values.append(float(above / below) if below else None)
        return tuple(values)


def _splits(items: Sequence[Item]) -> list[Split]:
    return list(dict.fromkeys(item.example.split for item in items))
