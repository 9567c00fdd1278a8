"""A vision tower before another family's decoder."""

from __future__ import annotations

from typing import Any, ClassVar

from saccade_server.models.base import ServedModel
from saccade_server.models.folder import CONFIG, UnsupportedModelError
from saccade_server.models.spec import DecoderSpec


class Composed(ServedModel):
    """A family whose text configuration says whose decoder it has."""

    texts: ClassVar[tuple[type[ServedModel], ...]]
    towers: ClassVar[tuple[str, ...]]  # model types of vision configurations

    @classmethod
    def describe(cls, config: Any) -> DecoderSpec:
        """The decoder of the text configuration's own family."""
        texts = {family.family: family for family in cls.texts}
        # Old configurations name another tower than the class that transformers makes of it.
        text, tower = config.get_text_config().model_type, type(config.vision_config).model_type
        if text not in texts or tower not in cls.towers:
            raise UnsupportedModelError(
                f"{cls.family} with {text!r} and {tower!r} is not supported; supported: "
                f"{', '.join(texts)} with {', '.join(cls.towers)}"
            )
        cls.check(config)
        return texts[text].describe(config)

    @classmethod
    def check(cls, config: Any) -> None:
        """Refuse what the family's tower and projector are not served with."""


def refuse(field: str, value: object, why: str) -> UnsupportedModelError:
    """A refusal of a field of the configuration beside text and tower."""
    return UnsupportedModelError(f"{field} is {value!r} in its {CONFIG}; {why}")
