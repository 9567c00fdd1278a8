"""What was recorded of an answer's forward passes: named arrays, read with numpy.

answer = client.chat("Describe the image.", images=image, trace={"masses": True, "heatmaps": True})
answer.trace["masses"].values          # [row, layer, class], float32
answer.trace["masses"].coordinates     # {"row": (76, 77, …), "layer": (0, 1, …), "class": (…)}
answer.trace                           # in a notebook: heat maps over the image, masses by layer
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import BaseModel, Field, PrivateAttr

from saccade_client.errors import InvalidInput
from saccade_client.wire import WIRE

if TYPE_CHECKING:
    from numpy.typing import NDArray

Bytes: TypeAlias = bytes
Fetch: TypeAlias = "Callable[[str], bytes]"

LINK = re.compile(r"/v1/traces/([0-9a-f]{64})", re.ASCII)
TYPES = {"float32": "<f4", "int32": "<i4", "uint8": "|u1"}
MOST_HEADER = 100 * 2**20


class View(BaseModel):
    """One view of an image: a run of tokens, one for each cell of a grid.

    `grid` is rows and columns, `box` what it shows of the image (left, top, right, bottom, in
    fractions of its sides), `size` the image's width and height in pixels.
    """

    model_config = WIRE

    start: int = 0
    length: int = 0
    grid: tuple[int, int] = (0, 0)
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    size: tuple[int, int] = (0, 0)


class ArrayFacts(BaseModel):
    """All about an array but its numbers, and these as they came, if they did."""

    model_config = WIRE

    dtype: str
    shape: list[int]
    axes: list[str]
    unit: str = ""
    coordinates: dict[str, list[Any]] = Field(default_factory=dict)
    mean_over: dict[str, list[int]] = Field(default_factory=dict)
    data: Any = Field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class TraceArray:
    """A named array. `coordinates` say what lies along its axes, `mean_over` what is averaged."""

    name: str
    values: NDArray[Any]
    axes: tuple[str, ...]
    unit: str
    coordinates: Mapping[str, tuple[Any, ...]]
    mean_over: Mapping[str, tuple[int, ...]]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def at(self, where: Mapping[str, Any] | None = None, **axes: Any) -> TraceArray:
        """Choose by coordinates: `at(layer=3)`, `at({"class": "image"})`. Raises InvalidInput."""
        found = self
        for axis, coordinate in {**(where or {}), **axes}.items():
            found = found._chosen(axis, coordinate)
        return found

    def mean(self, *axes: str) -> TraceArray:
        """Average over axes by name. Raises InvalidInput."""
        places = tuple(self._axis(axis) for axis in axes)
        return self._left(self.values.mean(places), axes)

    def _chosen(self, axis: str, coordinate: Any) -> TraceArray:
        place = self._axis(axis)
        known = self.coordinates.get(axis, tuple(range(self.shape[place])))
        if coordinate not in known:
            raise InvalidInput(f"{self.name} has no {axis} {coordinate!r}; it has {list(known)}")
        return self._left(self.values.take(known.index(coordinate), place), (axis,))

    def _axis(self, axis: str) -> int:
        if axis not in self.axes:
            raise InvalidInput(f"{self.name} has no axis {axis!r}; its axes are {list(self.axes)}")
        return self.axes.index(axis)

    def _left(self, values: Any, gone: Sequence[str]) -> TraceArray:
        axes = tuple(axis for axis in self.axes if axis not in gone)
        coordinates = {name: at for name, at in self.coordinates.items() if name not in gone}
        array = numpy().asarray(values)
        return TraceArray(self.name, array, axes, self.unit, coordinates, self.mean_over)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        found: NDArray[Any] = numpy().array(self.values, dtype=dtype, copy=copy)
        return found

    def __repr__(self) -> str:
        sizes = " x ".join(f"{n} {axis}" for axis, n in zip(self.axes, self.shape, strict=True))
        return f"<{self.name}: {sizes or 'one number'}, {self.values.dtype}, {self.unit}>"


class Trace(BaseModel):
    """The arrays of one choice, by name; those behind a link are fetched when one is asked for.

    `question` are the positions behind the prompt's last image, `images` the views of each image,
    `token_texts` the texts of tokens that arrays name. Answer token t was drawn from row
    `prompt_tokens - 1 + t`.
    """

    model_config = WIRE

    prompt_tokens: int = 0
    question: tuple[int, int] = (0, 0)
    images: list[list[View]] = []
    arrays: dict[str, ArrayFacts] = {}
    token_texts: dict[str, str] = {}
    bytes: int = 0
    link: str | None = None

    _fetch: Fetch | None = PrivateAttr(default=None)
    _pictures: list[str] = PrivateAttr(default_factory=list)
    _read: dict[str, Any] = PrivateAttr(default_factory=dict)

    def __getitem__(self, name: str) -> TraceArray:
        """Return an array. Raises KeyError, and InvalidInput if it is still to be fetched."""
        facts = self.arrays[name]
        if name not in self._read:
            if facts.data is None:
                self.fill(self._fetched())
            else:
                self._read[name] = decoded(facts)
        coordinates = {axis: tuple(at) for axis, at in facts.coordinates.items()}
        mean_over = {axis: tuple(at) for axis, at in facts.mean_over.items()}
        axes = tuple(facts.axes)
        return TraceArray(name, self._read[name], axes, facts.unit, coordinates, mean_over)

    def __contains__(self, name: object) -> bool:
        return name in self.arrays

    def __len__(self) -> int:
        return len(self.arrays)

    def keys(self) -> list[str]:
        """The names of its arrays."""
        return list(self.arrays)

    def html(self, images: Sequence[str] | None = None) -> str:
        """Show it as HTML that needs nothing else: pictures of what it has, without a script.

        `images` are data URLs; left out: those of the request.
        """
        from saccade_client.trace_view import page  # numpy is not needed before

        return page(self, self._pictures if images is None else images)

    def _repr_html_(self) -> str:
        return self.html()

    def attach(self, fetch: Fetch | None, pictures: Sequence[str]) -> None:
        """Remember how a link is fetched, and the images of the request."""
        self._fetch = fetch
        self._pictures = list(pictures)

    @property
    def pending(self) -> bool:
        """Whether its arrays are behind its link and have not been fetched."""
        return self.link is not None and not self._read

    def fill(self, content: Bytes) -> None:
        """Take the arrays from the file behind the link. Raises InvalidInput for other bytes."""
        if hashlib.sha256(content).hexdigest() != link_digest(self.link):
            raise InvalidInput("what is behind the link is not what it is named for")
        self._read.update(arrays_of(content))

    def _fetched(self) -> Bytes:
        if self.link is None:
            raise InvalidInput("the trace has neither numbers nor a link to them")
        if self._fetch is None:
            message = "the arrays are behind a link: await client.load_trace(trace) first"
            raise InvalidInput(message)
        return self._fetch(self.link)


def link_digest(link: str | None) -> str:
    """Return the digest that a link ends with. Raises InvalidInput for any other address."""
    found = LINK.fullmatch(link or "")
    if found is None:
        raise InvalidInput(f"a trace's link is /v1/traces/ and 64 hexadecimal digits, not {link!r}")
    return found[1]


def decoded(facts: ArrayFacts) -> NDArray[Any]:
    """Return the numbers that came with an answer; null is not a number."""
    np = numpy()
    kind = np.dtype(TYPES[facts.dtype])
    values: NDArray[Any]
    if isinstance(facts.data, str):
        values = np.frombuffer(base64.b64decode(facts.data), kind)
    else:
        values = np.asarray(facts.data, np.float64 if kind.kind == "f" else kind).astype(kind)
    return values.reshape(facts.shape)


def arrays_of(content: bytes) -> dict[str, NDArray[Any]]:
    """Read the arrays of a safetensors file."""
    np = numpy()
    kinds = {"F32": "<f4", "I32": "<i4", "U8": "|u1"}
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + min(length, MOST_HEADER)])
    body = memoryview(content)[8 + length :]
    return {
        name: np.frombuffer(body[slice(*about["data_offsets"])], kinds[about["dtype"]]).reshape(
            about["shape"]
        )
        for name, about in header.items()
        if name != "__metadata__"
    }


def pictures_of(body: Mapping[str, Any] | None) -> list[str]:
    """Return the images of a request that are in it, as data URLs; others are empty texts."""
    found: list[str] = []
    for message in (body or {}).get("messages", ()):
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if isinstance(part, Mapping) and part.get("type") == "image_url":
                given = part.get("image_url")
                url = given.get("url") if isinstance(given, Mapping) else given
                found.append(url if isinstance(url, str) and url.startswith("data:image/") else "")
    return found


def attach(reply: Any, fetch: Fetch | None, pictures: Sequence[str]) -> None:
    """Tell the traces of a reply's choices where they come from."""
    for choice in getattr(reply, "choices", ()):
        if choice.trace is not None:
            choice.trace.attach(fetch, pictures)


def numpy() -> Any:
    """Return numpy. Raises ImportError that says how to get it."""
    try:
        import numpy as np
    except ImportError as error:
        message = "arrays of traces need numpy: pip install 'saccade-client[images]'"
        raise ImportError(message) from error
    return np


def names_of(trace: Trace, beginning: str) -> Iterator[str]:
    """Yield the arrays of one kind: `beginning`, or with a dot and more behind it."""
    for name in trace.arrays:
        if name == beginning or name.startswith(f"{beginning}."):
            yield name
