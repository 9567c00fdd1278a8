"""Where a method acts: the fields for layers, heads, rows and images, and what they resolve to.

Methods inherit what they need. What depends on the model or the prompt is checked here when a
method compiles; the rest (negative numbers, duplicates, empty lists) when the request is parsed.
Heads are always *query* heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Discriminator, Field, StringConstraints, Tag, model_validator
from pydantic_core import PydanticCustomError

from saccade_interventions.base import Intervention, Needs
from saccade_interventions.context import Context, Span
from saccade_interventions.edits import Sites
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.indices import Index, Indices
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.phases import ROWS, Phase, parse_rows


def _known_rows(rows: str) -> str:
    parse_rows(rows)
    return rows


def _heads_kind(value: Any) -> str | None:
    if isinstance(value, list):
        return "list"
    if isinstance(value, dict):
        return "by_layer"
    return "all" if value == "all" else None


def _after_the_image(rows: str) -> str:
    if Phase.PREFIX in parse_rows(rows):
        raise PydanticCustomError(
            "rows", "The method edits rows after the image only: question, last, generated"
        )
    return rows


def _joined(*names: str) -> dict[str, Any]:
    """JSON Schema of one or more of ``names``, joined with '+'."""
    one = "|".join(names)
    return {"pattern": f"^({one})(\\+({one}))*$"}


LayerKey = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,5})$")]
HeadsByLayer = Annotated[
    dict[LayerKey, Indices],
    Field(min_length=1, json_schema_extra={"additionalProperties": False}),
]
Heads = Annotated[
    Annotated[Literal["all"], Tag("all")]
    | Annotated[Indices, Tag("list")]
    | Annotated[HeadsByLayer, Tag("by_layer")],
    Discriminator(
        _heads_kind,
        custom_error_type="heads",
        custom_error_message='Heads are "all", a list of numbers, or an object from layer to list',
    ),
]
Rows = Annotated[
    str,
    AfterValidator(_known_rows),
    Field(
        description="Query rows: prompt (all of it), question (after the last image), last (the "
        "prompt row that predicts the first token) or generated; joined with '+'.",
        json_schema_extra=_joined(*ROWS),
    ),
]
RowsAfterImage = Annotated[
    str,
    AfterValidator(_after_the_image),
    Field(
        description="Query rows: question (after the last image), last (the prompt row that "
        "predicts the first token) or generated; joined with '+'.",
        json_schema_extra=_joined("question", "last", "generated"),
    ),
]


class Sited(Intervention):
    """A method that acts at chosen layers and query heads, on chosen query rows."""

    layers: Indices | None = None
    """Decoder layers, counted from 0. None: the method's own choice for the model."""

    heads: Heads | None = None
    """Query heads: "all", a list used in every layer, or an object from layer to list.

    None: all heads. An object names its layers itself, so it excludes `layers`.
    """

    rows: Rows

    @model_validator(mode="after")
    def _layers_named_once(self) -> Sited:
        if isinstance(self.heads, dict) and self.layers is not None:
            raise PydanticCustomError(
                "layers_twice",
                "heads by layer name the layers already; leave layers out",
                {"at": "layers"},
            )
        return self

    def default_layers(self, model: ModelFacts) -> Sequence[int]:
        """The layers the method acts on when the request names none."""
        return range(model.layers)

    def sites(self, context: Context) -> Sites:
        """The (layer, heads) pairs asked for.

        Raises:
            InterventionError: a layer or head that the model does not have.
        """
        model = context.model
        if isinstance(self.heads, dict):
            return sites_by_layer(self.heads, model)
        layers = self.default_layers(model) if self.layers is None else self.layers
        check_layers(layers, model)
        if isinstance(self.heads, list):
            _check_heads(self.heads, model, "heads")
            heads = tuple(sorted(self.heads))
        else:
            heads = tuple(range(model.heads))
        return tuple((layer, heads) for layer in sorted(layers))

    def normalised(self) -> dict[str, Any]:
        """The entry with every default filled in, and its sets in order."""
        entry = super().normalised()
        for name in ("layers", "heads"):
            if isinstance(entry[name], list):
                entry[name] = sorted(entry[name])
        return entry

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases that ``rows`` names."""
        return parse_rows(self.rows)


class OnImages(Intervention):
    """A method that acts on the keys of the prompt's images."""

    needs_image: ClassVar[bool] = True

    image_index: Index | None = None
    """Which image of the prompt, counted from 0. None: all of them together."""

    def needs(self) -> Needs:
        """The chosen image, and those before it."""
        return Needs(images=(self.image_index or 0) + 1)

    def image_spans(self, context: Context) -> tuple[Span, ...]:
        """Positions of the chosen images.

        Raises:
            InterventionError: the model, or the prompt, or the index has no image.
        """
        spans = all_images(context)
        if self.image_index is None:
            return spans
        images = context.prompt.spans_by_image
        if self.image_index >= len(images):
            raise InterventionError(
                Code.TARGET_NOT_FOUND,
                f"there is no image {self.image_index}; the prompt has {len(images)}, from 0",
                "image_index",
            )
        return images[self.image_index]


def all_images(context: Context) -> tuple[Span, ...]:
    """Positions of the prompt's images.

    Raises:
        InterventionError: the model, or the prompt, has no image.
    """
    if not context.model.accepts_images:
        message = "the method works on images; the model takes none"
        raise InterventionError(Code.UNSUPPORTED_MODEL, message)
    if not context.prompt.images:
        message = "the method works on images; the prompt has none"
        raise InterventionError(Code.REQUIRES_IMAGE, message)
    return context.prompt.images


def check_layers(layers: Sequence[int], model: ModelFacts) -> None:
    """Check the values of a field ``layers``.

    Raises:
        InterventionError: a layer that the model does not have.
    """
    for index, layer in enumerate(layers):
        _check_layer(layer, model, f"layers[{index}]")


def inner_layers(model: ModelFacts, first: int, last: int) -> Sequence[int]:
    """All layers without the ``first`` and ``last`` so many; all where that leaves none."""
    return range(first, model.layers - last) or range(model.layers)


def layers_of_32(layers: int, first: int, last: int) -> range:
    """The layers that ``first`` to ``last`` (included) of 32 are in a model of another depth."""
    start, end = (min((part * layers + 16) // 32, layers - 1) for part in (first, last))
    return range(start, end + 1)


def sites_by_layer(heads: dict[str, list[int]], model: ModelFacts) -> Sites:
    """Heads by layer, as a request writes them.

    Raises:
        InterventionError: a layer or head that the model does not have.
    """
    for key, chosen in heads.items():
        _check_layer(int(key), model, f'heads["{key}"]')
        _check_heads(chosen, model, f'heads["{key}"]')
    return tuple(sorted((int(key), tuple(sorted(chosen))) for key, chosen in heads.items()))


def _check_layer(layer: int, model: ModelFacts, path: str) -> None:
    if layer >= model.layers:
        message = (
            f"there is no layer {layer}; the model has {model.layers}, 0 to {model.layers - 1}"
        )
        raise InterventionError(Code.LAYER_OUT_OF_RANGE, message, path)


def _check_heads(heads: list[int], model: ModelFacts, path: str) -> None:
    for index, head in enumerate(heads):
        if head >= model.heads:
            message = (
                f"there is no head {head}; heads are query heads, and the model has "
                f"{model.heads} in each layer, 0 to {model.heads - 1}"
            )
            if model.kv_heads != model.heads:
                message += f" (its {model.kv_heads} key-value heads have no index of their own)"
            raise InterventionError(Code.HEAD_OUT_OF_RANGE, message, f"{path}[{index}]")
