"""The registered methods, compiled for a benchmark's prompt as the server compiles them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import msgspec
import numpy as np

from gpu.problems import image_span
from gpu.serving import SINK_DIMS, Branches
from saccade_interventions.artifacts import Artifact, read_artifact
from saccade_interventions.base import PROBE_SIDE
from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Context, Prompt
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.image_views import ImageView
from saccade_interventions.plan import Plan
from saccade_interventions.registry import Registry
from saccade_server.engine.request import EngineInfo
from saccade_server.models.prompt import PreparedImage, RenderedPrompt
from saccade_server.requests.branches import branches_of
from saccade_server.requests.facts import facts_of

FINGERPRINT = "sha256:" + "0" * 64
QUESTION = ("Describe", " the", " image", ".")
"""The last tokens of every prompt, for methods that look for words; as PROBE_TEXT in base.py."""


@dataclass(frozen=True)
class Compiled:
    """What one method asks of the engine for prompts of one length."""

    entry: dict[str, Any]
    plan: Plan

    def branches(self, tokens: Sequence[int]) -> Branches:
        """The branches of a request with these tokens.

        An image is rows of its prompt like any other here, so what the branches compute costs what
        it would, and nothing is encoded.
        """
        start, end = image_span(len(tokens))
        pixels = np.zeros((3, 8, 8), np.float32)
        image = PreparedImage("", start, end - start, pixels, None)
        described = RenderedPrompt(tuple(tokens), "", (), (image,))
        made = branches_of(self.plan, described)
        return tuple(msgspec.structs.replace(branch, images=()) for branch in made)


class Methods:
    """All methods by name, each with the entry of its self-test, which names all heads it may.

    A method with an artifact gets the one that its probe makes up.
    """

    def __init__(self, info: EngineInfo) -> None:
        self._registry = Registry.discover()
        self._facts = replace(
            facts_of(info), sink_dims=SINK_DIMS, accepts_images=True, fingerprint=FINGERPRINT
        )

    @property
    def names(self) -> tuple[str, ...]:
        """In order."""
        return tuple(self._registry.methods)

    def compile(self, name: str, length: int) -> Compiled:
        """The plan for prompts of ``length`` tokens.

        Raises:
            InterventionError: the method does not run on the model, or changes nothing there.
        """
        kind = self._registry.methods[name]
        reason = kind.unsupported(self._facts)
        if reason is not None:
            raise InterventionError(Code.UNSUPPORTED_MODEL, reason)
        probe = kind.probe(self._facts)
        artifact = None if probe.artifact is None else read_artifact(probe.artifact)
        context = Context(self._facts, _described(length), _finder(artifact))
        plan = compile_plan(self._registry.parse([probe.entry]), context)
        assert plan is not None, "the probe changes nothing"
        return Compiled(probe.entry, plan)


def _described(length: int) -> Prompt:
    """The prompt as methods see it: a point a token, the image, and words at the end."""
    start, end = image_span(length)
    pieces = ["."] * length
    pieces[start:end] = ["<image>", *[""] * (end - start - 1)]
    pieces[length - len(QUESTION) :] = QUESTION
    offsets = tuple(pairwise(accumulate(map(len, pieces), initial=0)))
    view = ImageView(0, (start, end), 1, end - start, (PROBE_SIDE, PROBE_SIDE))
    return Prompt(length, (view.span,), "".join(pieces), offsets, views=(view,))


def _finder(artifact: Artifact | None) -> Callable[[str], Artifact | None]:
    """Where a context looks for artifacts, of which there is one at most."""
    known = {} if artifact is None else {artifact.digest: artifact}
    return known.get
