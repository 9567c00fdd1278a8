"""The mix of requests: plain and under methods, profiles and artifacts, streamed and whole.

All are greedy, so that each has one right answer, which a lone server tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from saccade_client import AsyncSaccade
from saccade_interventions.artifacts import write_artifact
from saccade_server.demo import SAMPLES_PATH

PROFILES = """
[profiles.grounded]
description = "Less is made up about images."
interventions = [{ method = "var", move_fraction = 0.6 }, { method = "pai" }]
"""
QUESTIONS = ("Describe the image.", "Is there a blue square?", "Is there a red circle?")
TOKENS = 48
FORMS = ("chat", "stream", "several", "complete", "score")


@dataclass(frozen=True)
class Said:
    """What an answer says, as far as it must be the same wherever it came from.

    ``receipt`` has for each intervention its method and whether it ran; ``profile`` the profile;
    ``scores`` are log probabilities, in nats.
    """

    texts: tuple[str, ...]
    receipt: tuple[tuple[str, bool], ...]
    profile: str | None = None
    scores: tuple[float, ...] = ()

    def is_steered_as(self, other: Said) -> bool:
        """Whether both say that the same interventions acted."""
        return (self.receipt, self.profile) == (other.receipt, other.profile)

    def says(self, other: Said) -> bool:
        """Whether both say the same; sums are added in another order beside other neighbours."""
        return self.texts == other.texts and np.allclose(self.scores, other.scores, atol=1e-3)


@dataclass(frozen=True)
class Asked:
    """A request: ``form`` is one of :data:`FORMS`, ``options`` the client's."""

    form: str
    name: str
    prompt: Any
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def steered(self) -> bool:
        """Whether it asks for interventions."""
        return bool(self.options.get("interventions") or self.options.get("profile"))

    async def ask(self, client: AsyncSaccade) -> Said:
        """Ask, and read the whole answer. Raises what the client raises."""
        if self.form == "score":
            scored = await client.score(["Yes.", "No."], messages=self.prompt, **self.options)
            profile = scored.intervention_profile
            return Said((), receipt(scored), profile, tuple(scored.logprobs))
        if self.form == "complete":
            whole = await client.complete(self.prompt, **self.options)
            return Said((whole.text,), receipt(whole), whole.intervention_profile)
        if self.form == "stream":
            async with client.stream_chat(self.prompt, **self.options) as stream:
                async for _ in stream:
                    pass
            answer = stream.final
        else:
            answer = await client.chat(self.prompt, **self.options)
        texts = tuple(choice.message.content or "" for choice in answer.choices)
        return Said(texts, receipt(answer), answer.intervention_profile)


def receipt(answer: Any) -> tuple[tuple[str, bool], ...]:
    """Each intervention's method, and whether the server says that it acted or was cached."""
    done = answer.interventions_applied or ()
    return tuple((one.method, one.status in ("applied", "cached")) for one in done)


def vectors(fingerprint: str, layers: int, width: int) -> bytes:
    """An artifact for the model: a small push in each residual, the same every time."""
    drawn = np.random.default_rng(0).standard_normal((layers, width)).astype(np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    tensors = {"layers": np.arange(1, layers + 1, dtype=np.int32), "vectors": drawn}
    return write_artifact("vectors", fingerprint, tensors)


def mix(artifact: str) -> list[Asked]:
    """Every request of the mix, each once."""
    steering = {"method": "steering", "artifact": artifact, "layers": [2], "coefficient": 2.0}
    ways: dict[str, dict[str, Any]] = {
        "plain": {},
        "var": {"interventions": ["var:move_fraction=0.6"]},
        "pai": {"interventions": ["pai"]},
        "vcd": {"interventions": ["vcd"]},
        "locore": {"interventions": ["locore"]},
        "steering": {"interventions": [steering]},
        "two": {"interventions": ["var:move_fraction=0.6", steering]},
        "profile": {"profile": "grounded"},
    }
    return [
        asked
        for way, options in ways.items()
        for picture in sorted(SAMPLES_PATH.glob("*.png"))
        for asked in forms(way, options, picture)
    ]


def forms(way: str, options: dict[str, Any], picture: Path) -> Iterator[Asked]:
    """One way to edit, asked for in every form."""
    greedy = {"temperature": 0.0, "max_tokens": TOKENS, "ignore_eos": True}
    for at, form in enumerate(FORMS):
        name = f"{form} {way} {picture.stem}"
        if form == "score":
            yield Asked(form, name, QUESTIONS[1], {**options, "images": picture})
        elif form == "complete":
            if way in ("plain", "steering"):
                yield Asked(form, name, f"{picture.stem}: Once upon a time", {**options, **greedy})
        else:
            more = {"n": 2} if form == "several" else {}
            chosen = {**options, **greedy, **more, "images": picture}
            yield Asked(form, name, QUESTIONS[at % len(QUESTIONS)], chosen)
