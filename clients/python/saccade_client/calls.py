"""Every request of the API as a value: what to send, and what type the answer has.

Both clients send these; nothing here touches the network. Arguments are checked when a call is
made, so a mistake is reported before anything is sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeAlias, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import ValidationError

from saccade_client import artifacts, catalog, options, tokens, traces
from saccade_client.answers import ChatCompletion, Completion
from saccade_client.artifacts import ArtifactSource
from saccade_client.errors import InvalidInput
from saccade_client.failures import REQUEST_ID_HEADER, unreadable
from saccade_client.images import Images
from saccade_client.interventions import Interventions, plain
from saccade_client.messages import Prompt, chat_messages
from saccade_client.response_formats import Parsed, Parsing
from saccade_client.scores import Scores
from saccade_client.wire import Reply, ReplyT, with_request_id

Continuations: TypeAlias = "Sequence[str | Sequence[int]]"
T = TypeVar("T")
TextPrompt: TypeAlias = "str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]"


@dataclass(frozen=True)
class Call(Generic[ReplyT]):
    """One request. A `body` without a model is completed by the client before it is sent.

    `data` is a body that is not JSON. `admin`: it needs the admin key.
    """

    method: str
    path: str
    answer: type[ReplyT]
    body: dict[str, Any] | None = None
    data: bytes | None = None
    admin: bool = False

    @property
    def lacks_model(self) -> bool:
        return self.body is not None and "model" not in self.body

    def with_model(self, model: str) -> Call[ReplyT]:
        return replace(self, body={"model": model, **(self.body or {})})

    def streaming(self) -> Call[ReplyT]:
        """Return the same call, answered piece by piece and with usage at the end."""
        own = {"stream": True, "stream_options": {"include_usage": True}}
        return replace(self, body=options.merged(own, self.body))

    def content(self) -> bytes | None:
        """Return the bytes of the body. Raises InvalidInput for NaN and what JSON lacks."""
        if self.body is None:
            return self.data
        try:
            text = json.dumps(self.body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            return text.encode("utf-8")
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidInput(f"the request cannot be written as JSON: {error}") from error

    def read(self, response: httpx2.Response) -> ReplyT:
        """Parse a success. Raises APIError "invalid_response" if it is not what was due."""
        request_id = response.headers.get(REQUEST_ID_HEADER)
        try:
            answer = self.answer.model_validate_json(response.content)
        except ValidationError as error:
            raise unreadable(response, f"{self.path}: {error}") from error
        return with_request_id(answer, request_id)

    @property
    def pictures(self) -> list[str]:
        """The images in the body, for what its answer shows of them."""
        return traces.pictures_of(self.body)


def chat(prompt: Prompt, given: Mapping[str, Any]) -> Call[ChatCompletion]:
    own = {"messages": chat_messages(prompt, given.get("images"))}
    body = options.request_body(own, given, options.ChatOptions)
    return Call("POST", "/v1/chat/completions", ChatCompletion, body)


def parse(prompt: Prompt, parsing: Parsing[T], given: Mapping[str, Any]) -> Call[Parsed[T]]:
    own = {
        "messages": chat_messages(prompt, given.get("images")),
        "response_format": options.MADE["response_format"](parsing.kind),
    }
    body = options.request_body(own, given, options.ParseOptions)
    return Call("POST", "/v1/chat/completions", Parsed, body)


def complete(prompt: TextPrompt, given: Mapping[str, Any]) -> Call[Completion]:
    own = {"prompt": plain(prompt, "prompt")}
    body = options.request_body(own, given, options.CompletionOptions)
    return Call("POST", "/v1/completions", Completion, body)


def score(
    continuations: Continuations,
    prompt: str | Sequence[int] | None,
    messages: Prompt | None,
    given: Mapping[str, Any],
) -> Call[Scores]:
    if isinstance(continuations, str):
        raise InvalidInput("continuations are a list, also of one text")
    own = {
        "continuations": plain(continuations, "continuations"),
        **text_or_messages(prompt, messages, given),
    }
    body = options.request_body(own, given, options.ScoreOptions)
    return Call("POST", "/v1/score", Scores, body)


def text_or_messages(
    prompt: str | Sequence[int] | None, messages: Prompt | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the field of what was given. Raises InvalidInput unless it is one of them."""
    if (prompt is None) == (messages is None):
        raise InvalidInput("give a prompt or messages, one of them")
    if messages is None and given.get("images") is not None:
        raise InvalidInput("images need messages to go into")
    if messages is None:
        return {"prompt": plain(prompt, "prompt")}
    return {"messages": chat_messages(messages, given.get("images"))}


def tokenize(
    prompt: str | None, messages: Prompt | None, given: Mapping[str, Any]
) -> Call[tokens.Tokens]:
    own = text_or_messages(prompt, messages, given)
    body = options.request_body(own, given, options.TokenizeOptions)
    return Call("POST", "/tokenize", tokens.Tokens, body)


def detokenize(token_ids: Sequence[int], model: str | None) -> Call[tokens.Detokenized]:
    if isinstance(token_ids, str):
        raise InvalidInput("tokens are a list of numbers, not a text")
    own = {"tokens": plain(token_ids, "tokens")}
    body = options.request_body(own, {"model": model}, options.TokenizeOptions)
    return Call("POST", "/detokenize", tokens.Detokenized, body)


def validate(
    interventions: Interventions | None,
    prompt: Prompt | None,
    images: Images | None,
    model: str | None,
    profile: str | None,
) -> Call[catalog.Validation]:
    if prompt is None and images is not None:
        raise InvalidInput("images need a prompt to go into")
    own = {} if prompt is None else {"messages": chat_messages(prompt, images)}
    given = {"interventions": interventions, "model": model, "profile": profile}
    body = options.request_body(own, given, options.Options)
    return Call("POST", "/v1/interventions/validate", catalog.Validation, body)


def list_models() -> Call[catalog.ModelList]:
    return Call("GET", "/v1/models", catalog.ModelList)


def list_interventions() -> Call[catalog.InterventionList]:
    return Call("GET", "/v1/interventions", catalog.InterventionList)


def get_intervention(method: str) -> Call[catalog.InterventionDetail]:
    if not isinstance(method, str) or not method:
        raise InvalidInput(f"a method has a name such as 'var', not {method!r}")
    try:
        path = f"/v1/interventions/{quote(method, safe='')}"
    except UnicodeEncodeError as error:
        raise InvalidInput(f"no method is called {method!r}") from error
    return Call("GET", path, catalog.InterventionDetail)


def list_profiles() -> Call[catalog.ProfileList]:
    return Call("GET", "/v1/profiles", catalog.ProfileList)


def list_artifacts() -> Call[artifacts.ArtifactList]:
    return Call("GET", "/v1/artifacts", artifacts.ArtifactList)


def put_artifact(source: ArtifactSource) -> Call[artifacts.Artifact]:
    data = artifacts.content(source)
    path = f"/v1/artifacts/{artifacts.digest(data)}"
    return Call("PUT", path, artifacts.Artifact, data=data, admin=True)


def get_artifact(name: str, method: str = "GET") -> Call[Reply]:
    return Call(method, f"/v1/artifacts/{artifacts.checked(name)}", Reply)


def delete_artifact(name: str) -> Call[artifacts.ArtifactDeleted]:
    path = f"/v1/artifacts/{artifacts.checked(name)}"
    return Call("DELETE", path, artifacts.ArtifactDeleted, admin=True)


def artifact_bytes(name: str, response: httpx2.Response) -> bytes:
    """Return the bytes that came, if they are the artifact's."""
    data = response.content
    if artifacts.digest(data) != artifacts.checked(name):
        raise unreadable(response, "these are not the bytes that the artifact is named for")
    return data


def get_trace(link: str | None) -> Call[Reply]:
    return Call("GET", f"/v1/traces/{traces.link_digest(link)}", Reply)


def probe(path: str) -> Call[Reply]:
    return Call("GET", path, Reply)
