"""Whose work a sequence is, for the engine's log: the API's request, and its trace."""

from __future__ import annotations

import msgspec


class Origin(msgspec.Struct, frozen=True):
    """``request_id``: as the API's log has it. ``traceparent``: W3C Trace Context's; "": none."""

    request_id: str = ""
    traceparent: str = ""

    @property
    def fields(self) -> dict[str, str]:
        """What a record of the log says of it."""
        parts = self.traceparent.split("-")
        found = {"request_id": self.request_id, "trace_id": parts[1] if len(parts) > 1 else ""}
        return {name: value for name, value in found.items() if value}


UNKNOWN = Origin()
