"""The asynchronous client; `client` is its twin and is kept line by line alike."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar, Unpack

from saccade_client import calls
from saccade_client.accumulate import CHAT, TEXT
from saccade_client.answers import ChatChunk, ChatCompletion, Completion
from saccade_client.artifacts import Artifact, ArtifactDeleted, ArtifactFacts, ArtifactSource
from saccade_client.async_connection import AsyncConnection
from saccade_client.calls import Continuations, TextPrompt
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
from saccade_client.options import (
    ChatOptions,
    CompletionOptions,
    ParseOptions,
    ScoreOptions,
    TokenizeOptions,
)
from saccade_client.response_formats import Parsed, Parsing
from saccade_client.scores import Scores
from saccade_client.stream import AsyncChatStream, AsyncCompletionStream, AsyncStream
from saccade_client.tokens import Tokens
from saccade_client.traces import Trace

T = TypeVar("T")


class AsyncSaccade(AsyncConnection):
    """A connection pool to one server; share it between tasks, close it by `async with`.

    `timeout` is in seconds. `api_key` defaults to the variable SACCADE_API_KEY, `admin_key`, which
    uploads need, to SACCADE_ADMIN_KEY. `affinity`: whether to tell load balancers what the turns
    of a conversation have in common, a hash of its head. An `http_client` of your own (proxies,
    certificates) stays yours to close. `sleep` and `jitter` serve tests.
    """

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

    async def parse(
        self, prompt: Prompt, response_format: type[T], **options: Unpack[ParseOptions]
    ) -> Parsed[T]:
        """Like `chat`, answered in JSON that fits a type; `parsed` of the answer is the object.

        The type is a pydantic model, a dataclass, or any other that pydantic knows. Raises
        AnswerTruncated, AnswerRefused and AnswerInvalid, with the raw answer.
        """
        parsing = Parsing(response_format)
        return parsing.fit(await self._run(calls.parse(prompt, parsing, options)))

    @asynccontextmanager
    async def stream_parse(
        self, prompt: Prompt, response_format: type[T], **options: Unpack[ParseOptions]
    ) -> AsyncIterator[AsyncStream[ChatChunk, Parsed[T]]]:
        """Like `parse`, in pieces: the object is that of the stream's `final`."""
        parsing = Parsing(response_format)
        call = calls.parse(prompt, parsing, options)
        async with self._stream(call, parsing.stream_kind) as stream:
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

    async def tokenize(
        self,
        prompt: str | None = None,
        *,
        messages: Prompt | None = None,
        **options: Unpack[TokenizeOptions],
    ) -> Tokens:
        """Return the tokens of a text as it stands, or of messages as `chat` would have them."""
        return await self._run(calls.tokenize(prompt, messages, options))

    async def detokenize(self, tokens: Sequence[int], *, model: str | None = None) -> str:
        """Return the text of tokens, control tokens included."""
        return (await self._run(calls.detokenize(tokens, model))).prompt

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
