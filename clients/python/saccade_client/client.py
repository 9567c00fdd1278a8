"""The synchronous client; `async_client` is its twin and is kept line by line alike."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, Self, Unpack

import httpx2

from saccade_client import calls, traces
from saccade_client.accumulate import CHAT, TEXT, ChunkT, FinalT, StreamKind
from saccade_client.artifacts import Artifact, ArtifactDeleted, ArtifactFacts, ArtifactSource
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
from saccade_client.calls import Call, Continuations, TextPrompt
from saccade_client.catalog import (
    InterventionDetail,
    InterventionInfo,
    Model,
    Profile,
    Validation,
)
from saccade_client.errors import NotFound
from saccade_client.images import Images
from saccade_client.interventions import Interventions
from saccade_client.messages import Prompt
from saccade_client.options import ChatOptions, CompletionOptions, ScoreOptions
from saccade_client.stream import ChatStream, CompletionStream, Stream
from saccade_client.traces import Trace
from saccade_client.types import ChatCompletion, Completion, ReplyT, Scores


class Saccade(BaseClient):
    """A connection pool to one server; share it between threads, close it by `with`.

    `timeout` is in seconds. `api_key` defaults to the variable SACCADE_API_KEY, `admin_key`, which
    uploads need, to SACCADE_ADMIN_KEY. `affinity`: whether to tell load balancers what the turns
    of a conversation have in common, a hash of its head. An `http_client` of your own (proxies,
    certificates) stays yours to close. `sleep` and `jitter` serve tests.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_BASE_URL,
        api_key: str | None = None,
        *,
        timeout: float | httpx2.Timeout = DEFAULT_TIMEOUT,
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

    def chat(self, prompt: Prompt, **options: Unpack[ChatOptions]) -> ChatCompletion:
        """Answer a prompt or a list of messages; ChatOptions lists the options."""
        return self._run(calls.chat(prompt, options))

    @contextmanager
    def stream_chat(self, prompt: Prompt, **options: Unpack[ChatOptions]) -> Iterator[ChatStream]:
        """Like `chat`, in pieces: `with client.stream_chat(…) as s: for chunk in s`."""
        with self._stream(calls.chat(prompt, options), CHAT) as stream:
            yield stream

    def complete(self, prompt: TextPrompt, **options: Unpack[CompletionOptions]) -> Completion:
        """Continue a text, or token ids, as they stand; CompletionOptions lists the options."""
        return self._run(calls.complete(prompt, options))

    @contextmanager
    def stream_complete(
        self, prompt: TextPrompt, **options: Unpack[CompletionOptions]
    ) -> Iterator[CompletionStream]:
        """Like `complete`, in pieces."""
        with self._stream(calls.complete(prompt, options), TEXT) as stream:
            yield stream

    def score(
        self,
        continuations: Continuations,
        *,
        prompt: str | Sequence[int] | None = None,
        messages: Prompt | None = None,
        **options: Unpack[ScoreOptions],
    ) -> Scores:
        """Tell how likely continuations are, of a text as it stands or of messages.

        `messages` are a question or a list, as `chat` takes them; ScoreOptions lists the options.
        """
        return self._run(calls.score(continuations, prompt, messages, options))

    def validate(
        self,
        interventions: Interventions | None = None,
        prompt: Prompt | None = None,
        *,
        images: Images | None = None,
        model: str | None = None,
        profile: str | None = None,
    ) -> Validation:
        """Dry run: the entries as the server reads them, or the error a real request would get.

        Without a prompt only what needs none is checked. Without interventions those of the profile
        are.
        """
        return self._run(calls.validate(interventions, prompt, images, model, profile))

    def models(self) -> list[Model]:
        return self._run(calls.list_models()).data

    def interventions(self) -> list[InterventionInfo]:
        """List the server's methods, and for each whether its model supports it."""
        return self._run(calls.list_interventions()).data

    def intervention(self, method: str) -> InterventionDetail:
        """Describe one method: JSON Schema of its parameters, defaults, bounds, paper."""
        return self._run(calls.get_intervention(method))

    def profiles(self) -> list[Profile]:
        """List the operator's bundles of interventions."""
        return self._run(calls.list_profiles()).data

    def artifacts(self) -> list[ArtifactFacts]:
        """List the artifacts that interventions may name."""
        return self._run(calls.list_artifacts()).data

    def put_artifact(self, source: ArtifactSource) -> Artifact:
        """Upload a file, or bytes; its `id` is what interventions name. Needs the admin key."""
        return self._run(calls.put_artifact(source))

    def delete_artifact(self, artifact: str) -> ArtifactDeleted:
        """Delete an artifact, on all servers that share its folder; needs the admin key.

        Requests that are being answered keep what they have. Raises NotFound, and Conflict where a
        profile of the server names it.
        """
        return self._run(calls.delete_artifact(artifact))

    def get_artifact(self, artifact: str) -> bytes:
        """Return an artifact's bytes, checked against its name. Raises NotFound."""
        return calls.artifact_bytes(artifact, self._send(calls.get_artifact(artifact)))

    def has_artifact(self, artifact: str) -> bool:
        """Whether the server has an artifact, without fetching it."""
        try:
            self._send(calls.get_artifact(artifact, "HEAD"))
        except NotFound:
            return False
        return True

    def load_trace(self, trace: Trace) -> Trace:
        """Fetch the arrays behind a trace's link, which asking for one does by itself."""
        if trace.pending:
            trace.fill(self._fetch_trace(trace.link))
        return trace

    def ready(self) -> bool:
        """Whether the server takes requests now; False too where nothing answers. Never retries."""
        return self._probe("/ready")

    def live(self) -> bool:
        """Whether the server's process is alive; False too where nothing answers. Never retries."""
        return self._probe("/live")

    def _probe(self, path: str) -> bool:
        request = self._request(self._http, calls.probe(path), timeout=PROBE_TIMEOUT)
        try:
            return is_up(self._exchange(request))
        except httpx2.TransportError:
            return False

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
