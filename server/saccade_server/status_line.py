"""One line of a terminal that is written over: how far a long piece of work is."""

from __future__ import annotations

import sys

from saccade_server.logs.setup import as_json


class StatusLine:
    """On standard error, if that is a terminal; nothing is written anywhere else."""

    def __init__(self) -> None:
        self.shown = sys.stderr.isatty() and not as_json()

    def show(self, text: str) -> None:
        """Put ``text`` in place of what the line says."""
        if self.shown:
            sys.stderr.write(f"\r\x1b[2K{text}")
            sys.stderr.flush()

    def clear(self) -> None:
        """Leave the line to whoever writes next."""
        self.show("")
