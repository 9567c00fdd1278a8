"""The base class of every method: its facts, its parameters, and ``compile``.

A method is a pydantic model. Its fields are the parameters a request may set, all optional unless
the method says otherwise; its class facts are what the server tells about it. ``compile`` turns
the parameters into a plan for one prompt and one model, or raises InterventionError. It must not
look at anything but its fields and the context, so equal entries give equal plans.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, field_validator
from pydantic_core import PydanticCustomError

from saccade_interventions.context import Context
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.plan import Plan

Level = Literal[
    "attention_score", "attention_mass", "head_output", "residual", "logits", "sampling"
]
"""Which part of the computation a method edits."""

Grid = tuple[Mapping[str, Any], ...]
"""Fields of entries, each of which makes one strength of a method."""

PROBE_TEXT = "Describe the image."
"""What the self-test asks the model, about an image if it takes any."""

PROBE_SIDE = 128
"""Pixels along a side of that image."""

DIALECT = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True)
class Probe:
    """An entry that must show on the served model, and the bytes of the artifact that it names.

    ``also``: fields that make other entries of it, which must show too.
    """

    entry: dict[str, Any]
    artifact: bytes | None = None
    also: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class ImageSize:
    """The pixels that an image must have at least; ``exact``: or these sides, times a number."""

    image: int
    width: int
    height: int
    exact: bool = False


@dataclass(frozen=True)
class Needs:
    """What an entry needs of a prompt: images and their sizes, texts, and tokens before its end."""

    images: int = 0
    texts: tuple[str, ...] = ()
    tokens: int = 0
    sizes: tuple[ImageSize, ...] = ()


class Intervention(BaseModel):
    """One entry of a request's ``interventions``. Subclasses set the class facts and compile.

    Numbers are strict: no strings, no booleans, nothing infinite. Unknown fields are refused.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    title: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    level: ClassVar[Level]
    needs_image: ClassVar[bool] = False
    needs_artifact: ClassVar[bool] = False
    current_version: ClassVar[str] = "1"
    example: ClassVar[dict[str, Any]]
    neutral: ClassVar[dict[str, Any] | None] = None
    """Fields that make :meth:`probe`'s entry change nothing; None if the method has no such."""
    grid: ClassVar[Grid] = ()
    """Strengths that evaluation tunes over, weakest first, the default ``{}`` at its place.

    Of one field, the weaker value is the one nearer to neutral; of factors, whose neutral value is
    1, the one whose logarithm is nearer to 0. Several factors add up. An entry that changes another
    field besides, or alone, comes behind the one that it adds to. Why these, the method says.
    """

    version: str | None = None
    """Pin the version of the method; a request for another one is refused."""

    @field_validator("version")
    @classmethod
    def _pinned(cls, version: str | None) -> str | None:
        if version not in (None, cls.current_version):
            raise PydanticCustomError(
                "version_mismatch",
                "This server has version {current} of the method",
                {"current": cls.current_version},
            )
        return version

    @abstractmethod
    def compile(self, context: Context) -> Plan:
        """Write the plan for one prompt.

        Raises:
            InterventionError: the prompt or the model does not allow it.
        """

    def resolved(self, context: Context) -> Self:
        """The method with what its artifact decides filled in; both compile to the same plan.

        Raises:
            InterventionError: the artifact is not there, or is another.
        """
        return self

    def needs(self) -> Needs:
        """What a prompt must have for the entry to be compiled."""
        return Needs(images=1 if self.needs_image else 0)

    @classmethod
    def unsupported(cls, model: ModelFacts) -> str | None:
        """Why the method cannot run on ``model`` with its defaults, None if it can."""
        if cls.needs_image and not model.accepts_images:
            return "the model takes no images"
        return None

    @classmethod
    def probe(cls, model: ModelFacts) -> Probe:
        """What the self-test at start asks for: strong enough to show on any model.

        The prompt is :data:`PROBE_TEXT` in the model's chat template, after an image of noise if
        the model takes images. A method that needs an artifact makes one up.
        """
        return Probe(cls.example)

    @classmethod
    def method_id(cls) -> str:
        """The name a request calls the method by."""
        return str(cls.model_fields["method"].default)

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """JSON Schema of the entry, with defaults, bounds and descriptions."""
        schema = cls.model_json_schema()
        schema["properties"]["version"]["enum"] = [cls.current_version, None]
        schema["required"] = ["method", *schema.get("required", [])]
        return {"$schema": DIALECT, **schema}

    def normalised(self) -> dict[str, Any]:
        """The entry with every default filled in, the version too."""
        return {**self.model_dump(mode="json"), "version": self.current_version}

    def fingerprint(self) -> str:
        """Content hash of the normalised entry, whatever the order of its keys."""
        text = json.dumps(self.normalised(), sort_keys=True, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
