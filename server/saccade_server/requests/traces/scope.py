"""What there is to trace: layers, heads, rows, keys and images of one request.

Everything a request names is looked up here, so it is refused in one voice if it is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from saccade_interventions.artifacts import Artifact
from saccade_interventions.context import Prompt, Span
from saccade_interventions.image_views import ImageView
from saccade_interventions.model_facts import ModelFacts
from saccade_server.requests.errors import RequestError
from saccade_server.requests.traces.fields import RowRange

OUT_OF_RANGE = "trace_out_of_range"
REQUIRES_IMAGE = "trace_requires_image"
UNDEFINED = "trace_undefined"
UNSUPPORTED_MODEL = "trace_unsupported_model"
TOO_LARGE = "trace_too_large"


@dataclass(frozen=True)
class Scope:
    """The model, a prompt, and how many tokens its answer may have.

    ``vocabulary``: how many tokens there are; None: whoever runs it knows. ``may_stop``: a text may
    end the answer before the engine does.
    Rows and keys are positions: of a prompt of P tokens, row P - 1 predicts the first token.
    """

    model: ModelFacts
    prompt: Prompt
    max_tokens: int
    artifacts: Callable[[str], Artifact | None] | None = None
    vocabulary: int | None = None
    may_stop: bool = False

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return self.prompt.length

    @property
    def question(self) -> Span:
        """Positions behind the last image."""
        return self.prompt.question_start, self.length

    @property
    def question_keys(self) -> tuple[Span, ...]:
        """The same as keys: none where nothing is behind the last image."""
        return (self.question,) if self.question[0] < self.question[1] else ()

    @property
    def images(self) -> tuple[tuple[ImageView, ...], ...]:
        """The views of each image of the prompt."""
        found: list[list[ImageView]] = [[] for _ in self.prompt.spans_by_image]
        for view in self.prompt.views:
            found[view.image].append(view)
        return tuple(map(tuple, found))

    def rows(self, rows: str | RowRange, path: str) -> Span:
        """Query rows, up to the longest answer.

        Raises:
            RequestError: tokens that cannot be there.
        """
        first = self.length - 1
        end = first + self.max_tokens
        if isinstance(rows, str):
            if rows == "answer" and not self.max_tokens:
                message = f"{path} is empty: no token is drawn; name rows of the prompt."
                raise RequestError(message, code=UNDEFINED, param=path)
            everything = (0, max(end, self.length))
            return {"answer": (first, end), "prompt": (0, self.length), "all": everything}[rows]
        if rows.answer is not None:
            _within(rows.answer[1], self.max_tokens, "the answer has at most", f"{path}.answer[1]")
            return first + rows.answer[0], first + rows.answer[1]
        assert rows.prompt is not None
        _within(rows.prompt[1], self.length, "the prompt has", f"{path}.prompt[1]")
        return rows.prompt[0], rows.prompt[1]

    def answer_rows(self, rows: str | RowRange, path: str) -> Span:
        """The same of rows that tokens are drawn from, and no others.

        Raises:
            RequestError: tokens that cannot be there, or rows of the prompt.
        """
        found = self.rows(rows, path)
        if found[0] < self.length - 1:
            message = f"{path} may be of the answer only: nothing is drawn from other rows."
            raise RequestError(message, code=UNDEFINED, param=path)
        return found

    def layers(self, layers: Sequence[int] | None, path: str) -> tuple[int, ...]:
        """Decoder layers, ascending; None: all.

        Raises:
            RequestError: the model does not have one.
        """
        return _chosen(layers, self.model.layers, "layer", path)

    def residuals(self, layers: Sequence[int] | None, path: str) -> tuple[int, ...]:
        """Numbers of residuals, by the layer that they enter; one more is behind the last layer.

        Raises:
            RequestError: the model does not have one.
        """
        return _chosen(layers, self.model.layers + 1, "residual", path)

    def heads(self, heads: Sequence[int] | None, path: str) -> tuple[int, ...]:
        """Query heads, ascending; None: all.

        Raises:
            RequestError: the model does not have one.
        """
        return _chosen(heads, self.model.heads, "query head", path)

    def check_tokens(self, tokens: Sequence[int], path: str) -> None:
        """Refuse token ids that the model does not have.

        Raises:
            RequestError: names the first.
        """
        for at, token in enumerate(tokens):
            if self.vocabulary is not None and token >= self.vocabulary:
                message = f"There is no token {token}; ids go from 0 to {self.vocabulary - 1}."
                raise RequestError(message, code=OUT_OF_RANGE, param=f"{path}[{at}]")

    def chosen_images(self, images: Sequence[int] | None, path: str) -> tuple[int, ...]:
        """Numbers of images, ascending; None: all.

        Raises:
            RequestError: the prompt has no image, or not this one.
        """
        kind = path.rpartition(".")[0]
        self.check_image(kind)
        chosen = _chosen(images, len(self.images), "image", path)
        if not all(self.images[number] for number in chosen):
            message = f"{kind} needs to know where on an image tokens lie; of this model it is not."
            raise RequestError(message, code=UNSUPPORTED_MODEL, param=kind)
        return chosen

    def keys(self, keys: str | Sequence[Sequence[int]], path: str) -> tuple[Span, ...]:
        """Key positions, up to the longest answer, as spans.

        Raises:
            RequestError: positions or images that are not there.
        """
        if isinstance(keys, str):
            if keys == "image":
                self.check_image(path)
                return self.prompt.images
            span = {"question": self.question, **self._keys}[keys]
            if span[0] >= span[1]:
                message = f"{path} is empty: nothing of the {keys} is read again."
                raise RequestError(message, code=UNDEFINED, param=path)
            return (span,)
        for at, (_, end) in enumerate(keys):
            most = self._keys["all"][1]
            _within(end, most, "prompt and answer have at most", f"{path}[{at}][1]")
        return tuple((start, end) for start, end in keys)

    @property
    def _keys(self) -> dict[str, Span]:
        # The last token is drawn and never read.
        end = max(self.length + self.max_tokens - 1, self.length)
        return {"prompt": (0, self.length), "answer": (self.length, end), "all": (0, end)}

    def check_image(self, path: str) -> None:
        """Refuse what is about images where there are none.

        Raises:
            RequestError: the model or the prompt has none.
        """
        if not self.model.accepts_images:
            message = f"{path} is about images; the model takes none."
            raise RequestError(message, code=UNSUPPORTED_MODEL, param=path)
        if not self.prompt.images:
            message = f"{path} is about images; the prompt has none."
            raise RequestError(message, code=REQUIRES_IMAGE, param=path)

    def check_sinks(self, path: str) -> None:
        """Refuse what is about sinks where they cannot be told.

        Raises:
            RequestError: no dimensions of massive activations are known of the model.
        """
        if not self.model.sink_dims:
            message = f"{path} needs attention sinks, which were not found in this model."
            raise RequestError(message, code=UNSUPPORTED_MODEL, param=path)


def _within(end: int, most: int, there: str, path: str) -> None:
    if end > most:
        message = f"{path} is {end}; {there} {most} tokens."
        raise RequestError(message, code=OUT_OF_RANGE, param=path)


def _chosen(numbers: Sequence[int] | None, count: int, what: str, path: str) -> tuple[int, ...]:
    for at, number in enumerate(numbers or ()):
        if number >= count:
            message = f"There is no {what} {number}; there are {count}, 0 to {count - 1}."
            raise RequestError(message, code=OUT_OF_RANGE, param=f"{path}[{at}]")
    return tuple(sorted(numbers)) if numbers is not None else tuple(range(count))
