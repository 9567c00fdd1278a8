"""What was recorded of an answer's forward passes: named arrays, read with numpy.

answer = client.chat("Describe the image.", images=image, trace={"masses": True, "heatmaps": True})
answer.trace["masses"].values          # [row, layer, class], float32
answer.trace["masses"].coordinates     # {"row": (76, 77, …), "layer": (0, 1, …), "class": (…)}
answer.trace                           # in a notebook: heat maps over the image, masses by layer
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from pydantic import BaseModel, PrivateAttr

from saccade_client.arrays import ArrayFacts, TraceArray, arrays_of, decoded, reading, unreadable
from saccade_client.errors import InvalidInput
from saccade_client.wire import WIRE

Bytes: TypeAlias = bytes
Fetch: TypeAlias = Callable[[str], bytes]

LINK = re.compile(r"/v1/traces/([0-9a-f]{64})", re.ASCII)


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
        """Return an array. Raises KeyError, InvalidInput if it is still to be fetched, and
        APIError "invalid_response" where it is none.
        """
        facts = self.arrays[name]
        if name not in self._read:
            if facts.data is None:
                self.fill(self._fetched())
            else:
                with reading(name):
                    self._read[name] = decoded(facts)
        if name not in self._read:
            raise unreadable(f"there is no {name} behind the link")
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

        with reading("the trace"):
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
        """Take the arrays from the file behind the link.

        Raises APIError "invalid_response" for other bytes.
        """
        if hashlib.sha256(content).hexdigest() != link_digest(self.link):
            raise unreadable("what is behind the link is not what it is named for")
        with reading("the file behind the link"):
            self._read.update(arrays_of(content))

    def __getstate__(self) -> dict[Any, Any]:
        """What is pickled: without the client that fetches the link."""
        state = super().__getstate__()
        private = {**(state["__pydantic_private__"] or {}), "_fetch": None}
        return {**state, "__pydantic_private__": private}

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


def pictures_of(body: Mapping[str, Any] | None) -> list[str]:
    """Return the images of a request that are in it, as data URLs; others are empty texts."""
    found: list[str] = []
    messages = (body or {}).get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, Mapping) else None
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


def names_of(trace: Trace, beginning: str) -> Iterator[str]:
    """Yield the arrays of one kind: `beginning`, or with a dot and more behind it."""
    for name in trace.arrays:
        if name == beginning or name.startswith(f"{beginning}."):
            yield name
