"""How calls are sent, synchronously; `async_connection` is its twin, line by line alike."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, Self

import httpx2

from saccade_client import calls, traces
from saccade_client.accumulate import ChunkT, FinalT, StreamKind
from saccade_client.base import (
    DEFAULT_BASE_URL,
    DEFAULT_TIMEOUT,
    PROBE_TIMEOUT,
    BaseClient,
    check_event_stream,
    check_one_transport,
    is_event_stream,
    is_up,
)
from saccade_client.calls import Call
from saccade_client.failures import environment_checked, transport_error
from saccade_client.stream import Stream
from saccade_client.wire import ReplyT


class Connection(BaseClient):
    """A pool of connections to one server, and how it is asked."""

    def __init__(
        self,
        base_url: str = DEFAULT_BASE_URL,
        api_key: str | None = None,
        *,
        timeout: float | httpx2.Timeout | None = DEFAULT_TIMEOUT,
        max_retries: int = 2,
        http_client: httpx2.Client | None = None,
        transport: httpx2.BaseTransport | None = None,
        sleep: Callable[[float], object] = time.sleep,
        jitter: Callable[[], float] = random.random,
        admin_key: str | None = None,
        affinity: bool = True,
    ) -> None:
        super().__init__(base_url, api_key, timeout, max_retries, jitter, admin_key, affinity)
        check_one_transport(http_client, transport)
        with environment_checked():
            self._http = http_client or httpx2.Client(transport=transport)
        self._owns_http = http_client is None
        self._sleep = sleep
        self._model_lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        if self._owns_http:
            self._http.close()

    def _probe(self, path: str) -> bool:
        request = self._request(self._http, calls.probe(path), timeout=PROBE_TIMEOUT)
        try:
            return is_up(self._exchange(request))
        except httpx2.TransportError:
            return False
        except httpx2.RequestError as error:
            raise transport_error(error) from error

    def _fetch_trace(self, link: str | None) -> bytes:
        return self._send(calls.get_trace(link)).content

    def _run(self, call: Call[ReplyT]) -> ReplyT:
        answer = call.read(self._send(self._completed(call)))
        traces.attach(answer, self._fetch_trace, call.pictures)
        return answer

    @contextmanager
    def _stream(
        self, call: Call[FinalT], kind: StreamKind[ChunkT, FinalT]
    ) -> Iterator[Stream[ChunkT, FinalT]]:
        call = self._completed(call).streaming()
        response = self._send(call, stream=True)
        check_event_stream(response)
        told = partial(traces.attach, fetch=self._fetch_trace, pictures=call.pictures)
        with closing(Stream(response, kind, told)) as stream:
            yield stream

    def _completed(self, call: Call[ReplyT]) -> Call[ReplyT]:
        if not call.lacks_model:
            return call
        with self._model_lock:
            model = self._model or self._keep_model(self._run(calls.list_models()))
        return call.with_model(model)

    def _send(self, call: Call[Any], *, stream: bool = False) -> httpx2.Response:
        """Return a success, after as many tries as the retry policy grants."""
        request = self._request(self._http, call, stream=stream)
        attempt = 0
        while True:
            try:
                response = self._exchange(request, stream=stream)
            except httpx2.RequestError as error:
                delay = self._wait_after_error(attempt, error)
            else:
                if response.is_success:
                    return response
                delay = self._wait_after_reply(attempt, response)
            self._sleep(delay)
            attempt += 1

    def _exchange(self, request: httpx2.Request, *, stream: bool = False) -> httpx2.Response:
        """Send once. The reply's body has been read unless it is the stream that was asked for."""
        response = self._http.send(request, stream=stream)
        if stream and not is_event_stream(response):
            with closing(response):
                response.read()
        return response
