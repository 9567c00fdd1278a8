"""A generation as it arrives: iterate for typed chunks, then read `final`.

`StreamReader` is the whole logic and does no I/O; `Stream` and `AsyncStream` only move bytes from a
response into it. The client closes the response when the `with` block ends, however it ends.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import Any, Generic

import httpx2
from pydantic import ValidationError

from saccade_client.accumulate import Accumulator, ChunkT, FinalT, StreamKind
from saccade_client.answers import ChatChunk, ChatCompletion, Completion, CompletionChunk
from saccade_client.errors import AnswerError, SaccadeError, StreamInterrupted, Timeout
from saccade_client.failures import (
    LONGEST_EXCERPT,
    REQUEST_ID_HEADER,
    decoded,
    streamed_error,
)
from saccade_client.sse import EventTooLarge, SSEDecoder
from saccade_client.wire import with_request_id

END = "[DONE]"


class StreamReader(Generic[ChunkT, FinalT]):
    """Turns bytes into chunks and keeps the sum. After the end it ignores whatever still comes."""

    def __init__(
        self,
        kind: StreamKind[ChunkT, FinalT],
        request_id: str | None,
        attach: Callable[[ChunkT], object] | None = None,
    ) -> None:
        """`attach` is told of every chunk before it is handed out."""
        self.request_id = request_id
        self._attach = attach
        self.ended = False
        self._kind = kind
        self._sum = Accumulator(kind)
        self._decoder = SSEDecoder()

    @property
    def text(self) -> str:
        return self._sum.text

    @property
    def final(self) -> FinalT:
        if not self.ended:
            raise self.interrupted(
                "the stream has not reached its end, so there is no final answer"
            )
        try:
            return with_request_id(self._sum.final(), self.request_id)
        except ValidationError as error:
            raise self.interrupted(f"the chunks add up to no answer: {error}") from error
        except AnswerError as error:
            if error.answer is not None:
                with_request_id(error.answer, self.request_id)
            raise

    def feed(self, content: bytes) -> Iterator[ChunkT]:
        """Yield the chunks these bytes complete. Raises APIError and StreamInterrupted."""
        if self.ended:
            return
        try:
            for event in self._decoder.feed(content):
                if event.data == END:
                    self.ended = True
                    return
                chunk = self._chunk(event.data)
                self._sum.add(chunk)
                yield chunk
        except EventTooLarge as error:
            raise self.interrupted(str(error)) from error

    def end(self) -> None:
        """Tell that no more bytes will come. Raises StreamInterrupted if the end marker did not."""
        if not self.ended:
            raise self.interrupted(f"the stream stopped before {END}: the answer is incomplete")

    def failed(self, error: Exception) -> SaccadeError:
        """Name a failure of the transport in mid-stream."""
        if isinstance(error, httpx2.TimeoutException):
            return Timeout("the stream went silent: nothing came within the read timeout")
        return self.interrupted(f"the stream broke off: {error or type(error).__name__}")

    def interrupted(self, message: str) -> StreamInterrupted:
        return StreamInterrupted(message, text=self.text, request_id=self.request_id)

    def _chunk(self, data: str) -> ChunkT:
        payload: Any = decoded(data.encode("utf-8"))
        if isinstance(payload, dict) and payload.get("error"):
            raise streamed_error(payload, self.request_id)
        try:
            chunk = self._kind.chunk(payload)
        except ValidationError as error:
            excerpt = data[:LONGEST_EXCERPT]
            raise self.interrupted(f"the stream sent what is no chunk: {excerpt!r}") from error
        if self._attach is not None:
            self._attach(chunk)
        return chunk


class StreamedAnswer(Generic[ChunkT, FinalT]):
    """What a stream can be asked, whether it is read synchronously or not."""

    def __init__(
        self,
        response: httpx2.Response,
        kind: StreamKind[ChunkT, FinalT],
        attach: Callable[[ChunkT], object] | None = None,
    ) -> None:
        self._response = response
        self._reader = StreamReader(kind, response.headers.get(REQUEST_ID_HEADER), attach)

    @property
    def text(self) -> str:
        """What the first choice has said so far."""
        return self._reader.text

    @property
    def final(self) -> FinalT:
        """The whole answer. Raises StreamInterrupted before the end is reached.

        That of a parsed stream raises what `parse` does.
        """
        return self._reader.final

    @property
    def request_id(self) -> str | None:
        """The x-request-id header: quote it when you report a problem."""
        return self._reader.request_id

    def _check_open(self) -> None:
        if self._response.is_closed and not self._reader.ended:
            raise self._reader.interrupted("the stream is closed: read it inside its with block")


class Stream(StreamedAnswer[ChunkT, FinalT]):
    """Iterate once for the chunks; afterwards `final` is the whole answer, receipt included."""

    def __init__(
        self,
        response: httpx2.Response,
        kind: StreamKind[ChunkT, FinalT],
        attach: Callable[[ChunkT], object] | None = None,
    ) -> None:
        super().__init__(response, kind, attach)
        self._chunks = self._read()

    def __iter__(self) -> Iterator[ChunkT]:
        self._check_open()
        return self._chunks

    def close(self) -> None:
        self._chunks.close()
        self._response.close()

    def _read(self) -> Generator[ChunkT, None, None]:
        try:
            # Reading past the end marker lets the connection be used again.
            for content in self._response.iter_bytes():
                yield from self._reader.feed(content)
        except (httpx2.RequestError, httpx2.StreamError) as error:
            if not self._reader.ended:
                raise self._reader.failed(error) from error
        self._reader.end()


class AsyncStream(StreamedAnswer[ChunkT, FinalT]):
    """Iterate once for the chunks; afterwards `final` is the whole answer, receipt included."""

    def __init__(
        self,
        response: httpx2.Response,
        kind: StreamKind[ChunkT, FinalT],
        attach: Callable[[ChunkT], object] | None = None,
    ) -> None:
        super().__init__(response, kind, attach)
        self._chunks = self._read()

    def __aiter__(self) -> AsyncIterator[ChunkT]:
        self._check_open()
        return self._chunks

    async def aclose(self) -> None:
        await self._chunks.aclose()
        await self._response.aclose()

    async def _read(self) -> AsyncGenerator[ChunkT, None]:
        try:
            # Reading past the end marker lets the connection be used again.
            async for content in self._response.aiter_bytes():
                for chunk in self._reader.feed(content):
                    yield chunk
        except (httpx2.RequestError, httpx2.StreamError) as error:
            if not self._reader.ended:
                raise self._reader.failed(error) from error
        self._reader.end()


ChatStream = Stream[ChatChunk, ChatCompletion]
CompletionStream = Stream[CompletionChunk, Completion]
AsyncChatStream = AsyncStream[ChatChunk, ChatCompletion]
AsyncCompletionStream = AsyncStream[CompletionChunk, Completion]
