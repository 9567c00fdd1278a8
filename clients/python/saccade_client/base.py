"""What both clients share: where the server is, who we are, and what to make of its replies."""

import os
import random
import threading
from collections.abc import Callable, Mapping
from typing import Any

import httpx2

from saccade_client import __version__, failures
from saccade_client.affinity import HEADER as AFFINITY_HEADER
from saccade_client.affinity import affinity_key
from saccade_client.calls import Call
from saccade_client.catalog import ModelList
from saccade_client.errors import APIError, InvalidInput
from saccade_client.failures import unreadable
from saccade_client.retry import RetryPolicy

DEFAULT_BASE_URL = "http://127.0.0.1:8000"
# Seconds. An answer that is not streamed comes with its last token, so reading is patient.
DEFAULT_TIMEOUT: httpx2.Timeout = httpx2.Timeout(600.0, connect=5.0)
PROBE_TIMEOUT = httpx2.Timeout(5.0)
API_KEY_VARIABLE = "SACCADE_API_KEY"
ADMIN_KEY_VARIABLE = "SACCADE_ADMIN_KEY"


class BaseClient:
    """Settings and decisions, without any I/O."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        timeout: float | httpx2.Timeout | None,
        max_retries: int,
        jitter: Callable[[], float] = random.random,
        admin_key: str | None = None,
        affinity: bool = True,
    ) -> None:
        self._base_url = checked_base_url(base_url)
        self._timeout = checked_timeout(timeout)
        self._retry = RetryPolicy(checked_retries(max_retries), jitter)
        self._model: str | None = None
        self._sends_affinity = affinity
        self._headers = {
            "Accept": "application/json",
            "User-Agent": f"saccade-client/{__version__}",
        }
        if key := os.environ.get(API_KEY_VARIABLE, "") if api_key is None else api_key:
            self._headers["Authorization"] = f"Bearer {checked_key(key)}"
        admin = os.environ.get(ADMIN_KEY_VARIABLE, "") if admin_key is None else admin_key
        self._admin = {"Authorization": f"Bearer {checked_key(admin)}"} if admin else {}

    def __repr__(self) -> str:
        key = "set" if "Authorization" in self._headers else "none"
        return f"{type(self).__name__}(base_url={self._base_url!r}, api_key={key})"

    @property
    def base_url(self) -> str:
        return self._base_url

    def _request(
        self,
        http: httpx2.Client | httpx2.AsyncClient,
        call: Call[Any],
        *,
        stream: bool = False,
        timeout: httpx2.Timeout | None = None,
    ) -> httpx2.Request:
        if http.is_closed:
            raise InvalidInput("the client is closed")
        content = call.content()
        headers = dict(self._headers)
        if stream:
            headers["Accept"] = "text/event-stream"
        if call.body is not None:
            headers["Content-Type"] = "application/json"
            headers |= self._affinity(call.body)
        if call.data is not None:
            headers["Content-Type"] = "application/octet-stream"
        if call.admin:
            headers |= self._admin
        return http.build_request(
            call.method,
            self._base_url + call.path,
            headers=headers,
            content=content,
            timeout=timeout or self._timeout,
        )

    def _affinity(self, body: Mapping[str, Any]) -> dict[str, str]:
        key = affinity_key(body) if self._sends_affinity else None
        return {AFFINITY_HEADER: key} if key else {}

    def _wait_after_error(self, attempt: int, error: httpx2.RequestError) -> float:
        """Return the seconds before the next try; raise what the user sees if there is none."""
        delay = self._retry.after_error(attempt, error)
        if delay is None:
            raise failures.transport_error(error) from error
        return delay

    def _wait_after_reply(self, attempt: int, response: httpx2.Response) -> float:
        """Return the seconds before the next try; raise the server's error if there is none."""
        delay = self._retry.after_reply(attempt, response.status_code, response.headers)
        if delay is None:
            raise failures.reply_error(response)
        return delay

    def _keep_model(self, answer: ModelList) -> str:
        if not answer.data:
            raise APIError(
                "the server lists no model; name one with model=…",
                status=200,
                code="no_models",
                request_id=answer.request_id,
            )
        self._model = answer.data[0].id
        return self._model


def is_event_stream(response: httpx2.Response) -> bool:
    kind = str(response.headers.get("content-type", ""))
    return response.is_success and kind.partition(";")[0].strip().lower() == "text/event-stream"


def check_event_stream(response: httpx2.Response) -> None:
    """Refuse a success that is no event stream; its body has been read."""
    if not is_event_stream(response):
        kind = response.headers.get("content-type", "no content type")
        raise unreadable(response, f"expected text/event-stream, got {kind}")


def is_up(response: httpx2.Response) -> bool:
    """Read a health probe: 503 means no, and anything else but a success is an error."""
    if response.status_code == 503:
        return False
    if not response.is_success:
        raise failures.reply_error(response)
    return True


def checked_base_url(base_url: str) -> str:
    """Return the address without a trailing slash or the /v1 that OpenAI clients want there."""
    try:
        url = httpx2.URL(base_url)
    except (httpx2.InvalidURL, TypeError) as error:
        raise InvalidInput(f"base_url {base_url!r} is not a URL: {error}") from error
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise InvalidInput(f"base_url {base_url!r} must look like {DEFAULT_BASE_URL}")
    try:
        url.host.encode("idna")
    except UnicodeError as error:
        raise InvalidInput(f"base_url {base_url!r} has no possible host: {error}") from error
    return str(url).rstrip("/").removesuffix("/v1")


def checked_timeout(timeout: float | httpx2.Timeout | None) -> httpx2.Timeout:
    """Return timeouts that sockets take: seconds above 0, or None for patience without end."""
    if not isinstance(timeout, httpx2.Timeout):
        timeout = httpx2.Timeout(checked_seconds(timeout))
    for seconds in timeout.as_dict().values():
        checked_seconds(seconds)
    return timeout


def checked_seconds(seconds: float | None) -> float | None:
    if seconds is None:
        return None
    if not isinstance(seconds, int | float) or not 0 < seconds <= threading.TIMEOUT_MAX:
        raise InvalidInput(f"a timeout is a number of seconds above 0, not {seconds!r}")
    return seconds


def checked_retries(max_retries: int) -> int:
    if isinstance(max_retries, bool) or not isinstance(max_retries, int) or max_retries < 0:
        raise InvalidInput(f"max_retries is a whole number from 0, not {max_retries!r}")
    return max_retries


def checked_key(key: str) -> str:
    if not isinstance(key, str):
        raise InvalidInput(f"the API key is a text, not {type(key).__name__}")
    # A key read from a file often ends in a line break, which no header can carry.
    if not key.isascii() or not key.isprintable() or key != key.strip():
        raise InvalidInput("the API key has spaces around it, a line break or non-ASCII letters")
    return key


def check_one_transport(http_client: object, transport: object) -> None:
    if http_client is not None and transport is not None:
        raise InvalidInput("give http_client or transport: a client has its transport already")
