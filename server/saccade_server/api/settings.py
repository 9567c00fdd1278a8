"""What an operator may decide about the HTTP API; frozen, made once by the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from saccade_server.api.access.key_file import check_limits
from saccade_server.api.access.keys import Key, plain_keys

MIB = 1024 * 1024


@dataclass(frozen=True)
class ApiSettings:
    """Names, limits and times of the API. Sizes are bytes, times seconds.

    ``artifacts`` and ``traces`` are folders; None: a private one that is gone when the server ends.
    ``admin_keys`` open the upload of artifacts; without one nobody may upload. ``keys`` are those
    that have names, beside both.
    ``max_fetched_bytes`` is what the images of one request may have together that the server
    fetches itself; those of all requests may have ``max_bodies_bytes``, as bodies may.
    ``max_pixels_in_flight`` is what the images of all requests may have together from when they are
    accepted until all of a request are what the model takes; one that becomes more pixels than it
    has counts as these. ``request_timeout`` counts from when the body has been read: waiting,
    fetching, decoding, rendering and generating.
    """

    served_model_name: str
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    admin_keys: tuple[str, ...] = field(default=(), repr=False)
    keys: tuple[Key, ...] = ()

    open_metrics: bool = False  # /metrics needs no key, and answers to any Host
    allowed_hosts: tuple[str, ...] = ()  # of a server without keys, see hosts.py
    cors_origins: tuple[str, ...] = ()  # empty: no page of another origin may read answers

    max_connections: int = 1024
    max_requests: int = 512  # being answered at once, over all connections
    max_headers: int = 100
    max_header_bytes: int = 64 * 1024  # of one request, its target included
    max_n: int = 16
    max_prompts: int = 64
    max_messages: int = 1024
    max_body_bytes: int = 32 * MIB
    max_bodies_bytes: int = 512 * MIB  # all bodies in memory together, parsed JSON estimated

    default_profile: str | None = None  # of requests that name neither one nor interventions
    expected_deployment: str | None = None  # a digest or a file, see expected.py

    artifacts: Path | None = None
    artifact_ttl: float | None = None  # after which those leave that nothing has used
    max_artifact_bytes: int = 64 * MIB
    max_artifacts_bytes: int = 4096 * MIB  # all artifacts together
    upload_timeout: float = 120.0

    traces: Path | None = None
    max_trace_bytes: int = 64 * MIB  # of one request, whatever it allows itself
    max_traces_bytes: int = 512 * MIB  # of all requests that are being answered
    max_stored_traces_bytes: int = 1024 * MIB  # files behind links; the oldest leave

    allow_image_urls: bool = False
    allowed_media_domains: tuple[str, ...] = ()  # lower case; empty: any public host
    max_images: int = 16
    max_image_bytes: int = 20 * MIB
    max_fetched_bytes: int = 64 * MIB
    max_image_pixels: int = 50_000_000
    max_request_pixels: int = 100_000_000  # all images of a request together
    max_pixels_in_flight: int = 200_000_000
    max_image_aspect: float = 200.0

    header_timeout: float = 20.0  # from the connection, or a request's first byte, to its head
    keep_alive_timeout: int = 5  # how long a connection may be idle between two requests
    body_timeout: float = 30.0
    send_timeout: float = 60.0  # how long a client may leave what it was sent unread
    fetch_timeout: float = 5.0
    request_timeout: float = 600.0
    max_queue_time: float | None = None  # until a request begins; None: until its deadline
    shutdown_timeout: float = 30.0
    silence_timeout: float = 20.0  # without a sign of life from the engine's process
    step_timeout: float = 180.0  # with work and without the end of a step
    sse_keep_alive: float = 15.0

    prompt_workers: int = 2  # threads that parse large bodies and render prompts
    grammar_workers: int = 2  # threads that check what answers are to be
    image_workers: int = 2  # threads that decode images; very large ones have one more
    access_log: bool = True
    otlp_traces_endpoint: str | None = None  # where spans are posted to; None: there are none

    def __post_init__(self) -> None:
        """Refuse limits of keys that contradict these.

        Raises:
            KeyFileError: there is one.
        """
        check_limits(self.keys, self.max_requests, self.max_images)

    @property
    def all_keys(self) -> tuple[Key, ...]:
        """Every key, by name."""
        return (*plain_keys(self.api_keys, self.admin_keys), *self.keys)

    @property
    def needs_key(self) -> bool:
        """Whether most routes are closed to who has no key."""
        return any(not key.admin for key in self.all_keys)
