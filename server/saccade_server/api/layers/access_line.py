"""One line of the log about each request."""

from __future__ import annotations

import logging
from urllib.parse import quote

from starlette.datastructures import Headers

from saccade_server.api.errors import bounded
from saccade_server.api.layers.record import Record

access_log = logging.getLogger("saccade.access")


class AccessLine:
    """Writes it once the request has ended."""

    def begun(self, record: Record, headers: Headers) -> None:
        """Nothing is said yet."""

    def ended(self, record: Record) -> None:
        """Who asked for what, what it was answered, and how long that took."""
        access_log.info(
            "%s %s %s %d %dB %.1fms id=%s",
            record.client or "-",
            record.method,
            bounded(quote(record.path)),
            record.status,
            record.bytes,
            1e3 * record.seconds,
            record.id,
        )
