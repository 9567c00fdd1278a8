"""Which methods exclude one another, found by composing every two of them.

A method takes part with its probe, which acts in all layers that the method can act in. Two methods
that are listed conflict where both act on the same heads and rows; elsewhere they may run together.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import combinations_with_replacement

from saccade_interventions.artifacts import Artifact, read_artifact
from saccade_interventions.base import Intervention
from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Context
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.probes import usual_prompt
from saccade_interventions.registry import Registry


def find_conflicts(registry: Registry, model: ModelFacts) -> dict[str, list[str]]:
    """For each method the names of those that it conflicts with, itself perhaps among them."""
    artifacts: dict[str, Artifact] = {}
    probes: dict[str, Intervention] = {}
    for name, kind in registry.methods.items():
        if kind.unsupported(model) is not None:
            continue
        probe = kind.probe(model)
        with suppress(InterventionError):  # a probe that is not valid is found by the self-test
            (probes[name],) = registry.parse([probe.entry])
        if probe.artifact is not None:
            artifact = read_artifact(probe.artifact)
            artifacts[artifact.digest] = artifact
    context = Context(model, usual_prompt(model.accepts_images), artifacts.get)
    found: dict[str, list[str]] = {name: [] for name in registry.methods}
    for one, other in combinations_with_replacement(probes, 2):
        try:
            compile_plan([probes[one], probes[other]], context)
        except InterventionError as error:
            if error.code is Code.CONFLICT:
                for name, rival in {(one, other), (other, one)}:
                    found[name].append(rival)
    return {name: sorted(rivals) for name, rivals in found.items()}
