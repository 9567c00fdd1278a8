"""Probes of methods without a model: each entry of one, and a prompt to compile it for."""

from __future__ import annotations

from collections.abc import Iterator

from saccade_interventions.artifacts import Artifact, read_artifact
from saccade_interventions.base import PROBE_SIDE, PROBE_TEXT, Intervention
from saccade_interventions.context import Context, Prompt
from saccade_interventions.image_views import ImageView
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.parsing import parse_entries


def usual_prompt(with_image: bool) -> Prompt:
    """A prompt of the usual form: an image, if the model takes any, and a question."""
    images = ((1, 5),) if with_image else ()
    start = images[0][1] if images else 0
    offsets = [(0, 0)] * start + [(i, i + 1) for i in range(len(PROBE_TEXT))]
    views = tuple(ImageView(0, span, 2, 2, (PROBE_SIDE, PROBE_SIDE)) for span in images)
    return Prompt(len(offsets), images, PROBE_TEXT, tuple(offsets), views=views)


def probes(method: type[Intervention], model: ModelFacts) -> Iterator[tuple[Intervention, Context]]:
    """The entries of a method's probe, each with what it is compiled for.

    Raises:
        InterventionError: one of them is not valid.
        ArtifactError: nor is the artifact that it names.
    """
    probe = method.probe(model)
    artifact = None if probe.artifact is None else read_artifact(probe.artifact)

    def find(digest: str) -> Artifact | None:
        return artifact if artifact is not None and artifact.digest == digest else None

    context = Context(model, usual_prompt(model.accepts_images), find)
    for fields in ({}, *probe.also):
        (item,) = parse_entries([{**probe.entry, **fields}], {method.method_id(): method})
        yield item, context
