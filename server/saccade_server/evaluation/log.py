"""An append-only log of finished work, one JSON object a line: what makes a long run resumable.

A run that was stopped may have left half a line at the end; it is dropped. A broken line anywhere
else means that the file is not a log, and nothing is written to it.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from saccade_server.evaluation.errors import EvaluationError


class WorkLog:
    """Open a log, read what is in it, append to it."""

    def __init__(self, path: Path) -> None:
        """Read ``path`` if there is such a file.

        Raises:
            EvaluationError: it is there and no log.
        """
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole, newline, _ = text.rpartition("\n")
        self.entries = [_entry(line, at, path) for at, line in enumerate(whole.split("\n"), 1)]
        self.entries = [entry for entry in self.entries if entry]
        path.parent.mkdir(parents=True, exist_ok=True)
        if text and text != whole + newline:
            path.write_text(whole + newline, encoding="utf-8")
        self._path = path
        self._opening: dict[str, Any] | None = None
        self._file = path.open("a", encoding="utf-8")

    def begin(self, work: str, digest: str) -> list[dict[str, Any]]:
        """What is done of some work; before anything is, the log is free for any other.

        Args:
            digest: of everything that decides the results; the log opens with it.

        Raises:
            EvaluationError: the log is of other work.
        """
        if not self.entries:
            self._opening = {work: digest}
        elif self.entries[0].get(work) != digest:
            message = f"{self._path} is of another calibration; delete it, or choose another --out"
            raise EvaluationError(message)
        return self.entries[1:]

    def append(self, entry: dict[str, Any]) -> None:
        """Add one line; it is on its way to the disk when this returns."""
        opening, self._opening = self._opening, None
        for line in (entry,) if opening is None else (opening, entry):
            self._file.write(json.dumps(line, separators=(",", ":")) + "\n")
            self.entries.append(line)
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> WorkLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _entry(line: str, at: int, path: Path) -> dict[str, Any]:
    if not line:
        return {}
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if not isinstance(entry, dict):
        raise EvaluationError(f"{path}:{at}: not a log of ours; move it away or name another file")
    return entry
