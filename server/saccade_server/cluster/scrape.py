"""/metrics of a cluster: those of all replicas in one, whichever of them is asked.

A label ``replica`` tells their samples apart, so that a counter is one series at every scrape. How
many replicas answered is a number of its own; of one that did not there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy

from saccade_server.api.metrics import names
from saccade_server.api.metrics.exposition import Family, family
from saccade_server.api.metrics.route import ENGINE_SECONDS

LABEL = "replica"
SECONDS = ENGINE_SECONDS + 1.0
"""How long the other replicas are waited for, which wait for their engines."""


def merged(
    expositions: Mapping[str, Iterable[Family]], model: str, *, silent: int = 0
) -> list[Family]:
    """The families of all replicas, each sample with its replica's name.

    Args:
        expositions: what each replica says, by its name.
        model: the served model's name.
        silent: how many more there are that said nothing.
    """
    whole: dict[tuple[str, str], Family] = {}
    for replica in sorted(expositions):
        for part in expositions[replica]:
            kept = whole.setdefault((part.name, part.type), _without_samples(part))
            kept.samples += [
                sample._replace(labels={**sample.labels, LABEL: replica}) for sample in part.samples
            ]
    states: dict[tuple[str, ...], float] = {("answered",): len(expositions), ("silent",): silent}
    return [family(names.REPLICAS, model, states), *whole.values()]


def _without_samples(part: Family) -> Family:
    empty = copy(part)
    empty.samples = []
    return empty
