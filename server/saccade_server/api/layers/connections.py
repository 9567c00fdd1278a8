"""Connections: how long a client may take over each part of one, and how many there may be.

uvicorn bounds only the silence between two requests. Here every state of a connection ends by
itself: a head that does not come, the rest of a body that was refused, an answer that nobody reads.
Bodies have times of their own (:mod:`~saccade_server.api.layers.bodies`), answers the engine's.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from saccade_server.api.errors import ApiError, BadRequest, HeadersTooLarge, Timeout, Unavailable
from saccade_server.api.layers.admission import CROWDED
from saccade_server.api.layers.joining import JoiningTransport
from saccade_server.api.layers.listener import connections_within_limits
from saccade_server.api.layers.shortcut import SHORTCUT
from saccade_server.api.settings import ApiSettings

SPARE_CONNECTIONS = 16
"""Connections beyond the most, on which probes are answered and everything else is refused."""
CROWDED_SECONDS = 2.0
"""How long one of these may take to ask."""
LINGER_SECONDS = 2.0
"""How long a client that is still sending may take to read why it was refused."""
GRACE_SECONDS = 2


class HttpConfig(uvicorn.Config):
    """How uvicorn serves the application: one place for the server and the tests."""

    def __init__(
        self,
        app: ASGIApp,
        settings: ApiSettings,
        refused: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``refused`` is told the code of every refusal that no request stands for."""
        super().__init__(
            app,
            http=Connection,
            loop="asyncio",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=settings.keep_alive_timeout,
            timeout_graceful_shutdown=GRACE_SECONDS,
            h11_max_incomplete_event_size=settings.max_header_bytes,
        )
        self.settings = settings
        self.refused = refused
        self.crowd: dict[Connection, None] = {}  # those beyond the most, oldest first
        self.max_connections = connections_within_limits(
            settings.max_connections, SPARE_CONNECTIONS
        )


class Connection(H11Protocol):
    """uvicorn's connection, in which nothing lasts for ever."""

    def __init__(
        self,
        config: HttpConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.most = config.max_connections
        self.crowd = config.crowd
        self.refused = config.refused
        self.header_timeout = config.settings.header_timeout
        self.send_timeout = config.settings.send_timeout
        self.lingers = False
        self.streamed = 0
        self._head_timer = _Timer(self.loop, self._late)
        self._send_timer = _Timer(self.loop, lambda: self.transport.abort())

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._joining = JoiningTransport(transport, self.loop)
        super().connection_made(self._joining)
        self.app_state = {**self.app_state, SHORTCUT: self}
        extra = len(self.connections) - self.most
        if extra > SPARE_CONNECTIONS and not self._make_room():
            self._refuse(_too_many(), linger=False)
            return
        if extra > 0:
            self.app_state = {**self.app_state, CROWDED: True}
            self.header_timeout = min(self.header_timeout, CROWDED_SECONDS)
            self.crowd[self] = None
        self._watch()

    @property
    def writable(self) -> bool:
        """See :class:`~saccade_server.api.layers.shortcut.Shortcut`."""
        cycle = self.cycle
        ended = cycle.disconnected or cycle.response_complete
        # Before HTTP/1.1 there are no chunks.
        return not (ended or self.flow.write_paused) and cycle.scope["http_version"] == "1.1"

    def write_piece(self, piece: bytes) -> None:
        """See :class:`~saccade_server.api.layers.shortcut.Shortcut`."""
        # As h11 frames it, whose state a piece of a body leaves as it is.
        self._joining.flush()
        self._joining.apart.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.streamed += len(piece)

    def data_received(self, data: bytes) -> None:
        if self.lingers or self.conn.their_state in (h11.MUST_CLOSE, h11.ERROR):
            return  # behind the last request; a stray line break there is no reason to refuse it
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.crowd.pop(self, None)
        self._unset_keepalive_if_required()
        self._head_timer.stop()
        self._send_timer.stop()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._send_timer.start(self.send_timeout)

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._send_timer.stop()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch()

    def shutdown(self) -> None:
        super().shutdown()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; called while the parser's error is being handled."""
        status = getattr(sys.exception(), "error_status_hint", 400)
        if status == HeadersTooLarge.status:
            self._refuse(HeadersTooLarge())
            return
        refusal = BadRequest("The request is not valid HTTP.", code="invalid_http")
        refusal.status = status
        self._refuse(refusal)

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: the request is answered without the upgrade, as HTTP has it."""

    @property
    def _busy(self) -> bool:
        """A request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _idle(self) -> bool:
        """The connection waits for the first byte of another request."""
        waits = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        return self.cycle is not None and waits

    def _make_room(self) -> bool:
        """Close the spare connection that has waited longest for a head.

        Who connects only to occupy gives way like this to a probe, which asks at once.
        """
        waiting = next((each for each in self.crowd if not each._busy), None)
        if waiting is None:
            return False
        del self.crowd[waiting]
        waiting.transport.abort()
        return True

    def _watch(self) -> None:
        """Let the time for a head run exactly while one, or what is left of a body, is due."""
        if self.transport.is_closing():
            self._head_timer.stop()
            self._send_timer.start(self.send_timeout)
        elif self._busy or self._idle or self.lingers:
            self._head_timer.stop()
        else:
            self._head_timer.start(self.header_timeout)

    def _late(self) -> None:
        if self.conn.trailing_data[0] and self.conn.our_state is h11.IDLE:
            self._refuse(Timeout("The request's headers took too long."))
        else:
            self.transport.close()
            self._watch()

    def _refuse(self, refusal: ApiError, linger: bool = True) -> None:
        """Answer instead of the application, and end the connection.

        A connection that is closed while its client sends is reset, and the refusal may be lost
        with it: what still comes is read and thrown away until the client closes, or for a while.
        """
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        self._unset_keepalive_if_required()
        self.refused(refusal.code)
        self.transport.write(self._response(refusal))
        if not linger:
            self.transport.close()
        else:
            self.lingers = True
            self.transport.write_eof()
            self.flow.resume_reading()
            self.loop.call_later(LINGER_SECONDS, self.transport.abort)
        self._watch()

    def _response(self, refusal: ApiError) -> bytes:
        body = refusal.json()
        headers = {
            **refusal.headers,
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
        }
        reason = HTTPStatus(refusal.status).phrase
        head = h11.Response(
            status_code=refusal.status, headers=list(headers.items()), reason=reason.encode()
        )
        events = (head, h11.Data(data=body), h11.EndOfMessage())
        return b"".join(self.conn.send(event) or b"" for event in events)


def _too_many() -> Unavailable:
    return Unavailable("Too many connections at once.", close=True)


class _Timer:
    """Does something once after a time, unless it is stopped before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, action: Callable[[], None]) -> None:
        self._loop = loop
        self._action = action
        self._handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float) -> None:
        """Begin; a timer that runs goes on as it was begun."""
        if self._handle is None:
            self._handle = self._loop.call_later(seconds, self._run)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _run(self) -> None:
        self._handle = None
        self._action()
