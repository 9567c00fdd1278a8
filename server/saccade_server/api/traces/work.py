"""From the pieces of a sequence's trace to what its choice says of it.

Traces have a thread of their own: texts that are to become prompts do not wait behind arrays that
are to be written. What all requests' traces may have together is taken from one budget before they
run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec

from saccade_server.api.errors import EngineFailure, Unavailable
from saccade_server.api.settings import ApiSettings
from saccade_server.api.traces.files import trace_file
from saccade_server.api.traces.numbers import as_base64, as_lists
from saccade_server.api.traces.store import TraceStore
from saccade_server.requests.traces.arrays import TraceArray
from saccade_server.requests.traces.joining import TraceLostError, TraceSum
from saccade_server.requests.traces.options import TraceOptions
from saccade_server.requests.traces.resolve import TracePlan

logger = logging.getLogger("saccade.traces")

INLINE_BYTES = 256 * 1024
"""Larger traces are behind links, unless the request says otherwise."""
RETRY_SECONDS = 2
LINK = "/v1/traces/"

_encode = msgspec.json.Encoder().encode


class TokenNames(Protocol):
    """Knows the text of a token."""

    def token_text(self, token: int) -> tuple[str, bytes]: ...


class TraceWork:
    """Makes answers of traces, and keeps the files that they link to.

    ``taken`` are the bytes that traces of requests may have that are being answered.
    """

    def __init__(self, settings: ApiSettings, names: TokenNames) -> None:
        self.store = TraceStore(settings.traces, settings.max_stored_traces_bytes)
        self._names = names
        self._most = settings.max_traces_bytes
        self.taken = 0
        self._thread = ThreadPoolExecutor(1, "saccade-trace")

    def close(self) -> None:
        """End the thread once it is idle, and drop a private folder."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self.store.close()

    @contextmanager
    def room(self, plans: Iterable[TracePlan]) -> Iterator[None]:
        """Take what these traces may become out of the budget of all of them.

        Raises:
            Unavailable: there is too little left now.
        """
        needed = sum(plan.bytes for plan in plans)
        if self.taken + needed > self._most:
            message = "The server is keeping as many traces as it may at once; try again soon."
            raise Unavailable(message, retry_after=RETRY_SECONDS)
        self.taken += needed
        try:
            yield
        finally:
            self.taken -= needed

    async def answer(
        self, options: TraceOptions, plan: TracePlan, pieces: TraceSum, generated: int
    ) -> msgspec.Raw:
        """What a choice of so many tokens says of its trace, as JSON.

        Raises:
            EngineFailure: the engine left out something that was asked for.
        """

        def work() -> msgspec.Raw:
            return msgspec.Raw(self._written(options, plan.facts(), pieces.arrays(generated)))

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except TraceLostError as error:
            logger.error("a trace is not whole: %s", error)
            raise EngineFailure() from error

    def _written(
        self, options: TraceOptions, facts: dict[str, Any], arrays: Mapping[str, TraceArray]
    ) -> bytes:
        size = sum(array.values.nbytes for array in arrays.values())
        facts |= {"token_texts": self._texts(arrays), "bytes": size}
        small = size <= INLINE_BYTES
        as_text = options.encoding == "base64"
        if options.delivery == "link" or (options.delivery == "auto" and not small):
            linked = self._linked(facts, arrays)
            if linked is not None:
                return linked
            as_text = True  # the numbers are there, if not where they were to be
        return b"".join(_inline(facts, arrays, as_text))

    def _linked(self, facts: dict[str, Any], arrays: Mapping[str, TraceArray]) -> bytes | None:
        whole = facts | {"arrays": {name: array.facts() for name, array in arrays.items()}}
        file = trace_file(whole, arrays)
        try:
            self.store.put(file)
        except (OSError, Unavailable) as error:
            logger.error("a trace could not be kept and is sent with its answer: %s", error)
            return None
        return _encode(whole | {"link": LINK + file.digest})

    def _texts(self, arrays: Mapping[str, TraceArray]) -> dict[str, str]:
        """The text of every token that arrays have as a number."""
        tokens: set[int] = set()
        for array in arrays.values():
            if array.spec.tokens:
                tokens.update(array.values.reshape(-1).tolist())
        return {str(token): self._names.token_text(token)[0] for token in sorted(tokens)}


def _inline(
    facts: Mapping[str, Any], arrays: Mapping[str, TraceArray], as_text: bool
) -> Iterator[bytes]:
    """JSON of the whole trace, in pieces."""
    yield _encode(facts)[:-1] + b',"arrays":{'
    for at, (name, array) in enumerate(arrays.items()):
        yield (b"," if at else b"") + _encode(name) + b":" + _encode(array.facts())[:-1]
        yield b',"data":'
        yield from (as_base64 if as_text else as_lists)(array.values)
        yield b"}"
    yield b"}}"
