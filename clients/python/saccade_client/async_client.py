"""The asynchronous client; `client` is its twin and is kept line by line alike."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
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
from saccade_client.stream import AsyncChatStream, AsyncCompletionStream, AsyncStream
from saccade_client.traces import Trace
from saccade_client.types import ChatCompletion, Completion, ReplyT, Scores


class AsyncSaccade(BaseClient):
    """A connection pool to one server; share it between tasks, close it by `async with`.

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
        http_client: httpx2.AsyncClient | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
        admin_key: str | None = None,
        affinity: bool = True,
    ) -> None:
        super().__init__(base_url, api_key, timeout, max_retries, jitter, admin_key, affinity)
        check_one_transport(http_client, transport)
        self._http = http_client or httpx2.AsyncClient(transport=transport)
        self._owns_http = http_client is None
        self._sleep = sleep
        self._model_lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        if self._owns_http:
            await self._http.aclose()

    async def chat(self, prompt: Prompt, **options: Unpack[ChatOptions]) -> ChatCompletion:
        """Answer a prompt or a list of messages; ChatOptions lists the options."""
        return await self._run(calls.chat(prompt, options))

    @asynccontextmanager
    async def stream_chat(
        self, prompt: Prompt, **options: Unpack[ChatOptions]
    ) -> AsyncIterator[AsyncChatStream]:
        """Like `chat`, in pieces: `async with client.stream_chat(…) as s: async for chunk in s`."""
        async with self._stream(calls.chat(prompt, options), CHAT) as stream:
            yield stream

    async def complete(
        self, prompt: TextPrompt, **options: Unpack[CompletionOptions]
    ) -> Completion:
        """Continue a text, or token ids, as they stand; CompletionOptions lists the options."""
        return await self._run(calls.complete(prompt, options))

    @asynccontextmanager
    async def stream_complete(
        self, prompt: TextPrompt, **options: Unpack[CompletionOptions]
    ) -> AsyncIterator[AsyncCompletionStream]:
        """Like `complete`, in pieces."""
        async with self._stream(calls.complete(prompt, options), TEXT) as stream:
            yield stream

    async def score(
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
        return await self._run(calls.score(continuations, prompt, messages, options))

    async def validate(
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
        return await self._run(calls.validate(interventions, prompt, images, model, profile))

    async def models(self) -> list[Model]:
        return (await self._run(calls.list_models())).data

    async def interventions(self) -> list[InterventionInfo]:
        """List the server's methods, and for each whether its model supports it."""
        return (await self._run(calls.list_interventions())).data

    async def intervention(self, method: str) -> InterventionDetail:
        """Describe one method: JSON Schema of its parameters, defaults, bounds, paper."""
        return await self._run(calls.get_intervention(method))

    async def profiles(self) -> list[Profile]:
        """List the operator's bundles of interventions."""
        return (await self._run(calls.list_profiles())).data

    async def artifacts(self) -> list[ArtifactFacts]:
        """List the artifacts that interventions may name."""
        return (await self._run(calls.list_artifacts())).data

    async def put_artifact(self, source: ArtifactSource) -> Artifact:
        """Upload a file, or bytes; its `id` is what interventions name. Needs the admin key."""
        return await self._run(calls.put_artifact(source))

    async def delete_artifact(self, artifact: str) -> ArtifactDeleted:
        """Delete an artifact, on all servers that share its folder; needs the admin key.

        Requests that are being answered keep what they have. Raises NotFound, and Conflict where a
        profile of the server names it.
        """
        return await self._run(calls.delete_artifact(artifact))

    async def get_artifact(self, artifact: str) -> bytes:
        """Return an artifact's bytes, checked against its name. Raises NotFound."""
        return calls.artifact_bytes(artifact, await self._send(calls.get_artifact(artifact)))

    async def has_artifact(self, artifact: str) -> bool:
        """Whether the server has an artifact, without fetching it."""
        try:
            await self._send(calls.get_artifact(artifact, "HEAD"))
        except NotFound:
            return False
        return True

    async def load_trace(self, trace: Trace) -> Trace:
        """Fetch the arrays behind a trace's link, which must be there before one is asked for."""
        if trace.pending:
            trace.fill((await self._send(calls.get_trace(trace.link))).content)
        return trace

    async def ready(self) -> bool:
        """Whether the server takes requests now; False too where nothing answers. Never retries."""
        return await self._probe("/ready")

    async def live(self) -> bool:
        """Whether the server's process is alive; False too where nothing answers. Never retries."""
        return await self._probe("/live")

    async def _probe(self, path: str) -> bool:
        request = self._request(self._http, calls.probe(path), timeout=PROBE_TIMEOUT)
        try:
            return is_up(await self._exchange(request))
        except httpx2.TransportError:
            return False

    async def _run(self, call: Call[ReplyT]) -> ReplyT:
        answer = call.read(await self._send(await self._completed(call)))
        traces.attach(answer, None, call.pictures)
        return answer

    @asynccontextmanager
    async def _stream(
        self, call: Call[FinalT], kind: StreamKind[ChunkT, FinalT]
    ) -> AsyncIterator[AsyncStream[ChunkT, FinalT]]:
        call = (await self._completed(call)).streaming()
        response = await self._send(call, stream=True)
        check_event_stream(response)
        told = partial(traces.attach, fetch=None, pictures=call.pictures)
        async with aclosing(AsyncStream(response, kind, told)) as stream:
            yield stream

    async def _completed(self, call: Call[ReplyT]) -> Call[ReplyT]:
        if not call.lacks_model:
            return call
        async with self._model_lock:
            model = self._model or self._keep_model(await self._run(calls.list_models()))
        return call.with_model(model)

    async def _send(self, call: Call[Any], *, stream: bool = False) -> httpx2.Response:
        """Return a success, after as many tries as the retry policy grants."""
        request = self._request(self._http, call, stream=stream)
        attempt = 0
        while True:
            try:
                response = await self._exchange(request, stream=stream)
            except httpx2.RequestError as error:
                delay = self._wait_after_error(attempt, error)
            else:
                if response.is_success:
                    return response
                delay = self._wait_after_reply(attempt, response)
            await self._sleep(delay)
            attempt += 1

    async def _exchange(self, request: httpx2.Request, *, stream: bool = False) -> httpx2.Response:
        """Send once. The reply's body has been read unless it is the stream that was asked for."""
        response = await self._http.send(request, stream=stream)
        if stream and not is_event_stream(response):
            async with aclosing(response):
                await response.aread()
        return response
