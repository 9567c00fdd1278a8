"""Results on disk: one document for each subject, whole after every part, with what each is of.

A part's record says of which code (its digest), commit and time it is. Figures that an earlier run
brought along count if they are of the same code and card; others are dropped, and measured again.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from report import Target, read, save

from gpu.digests import digest
from gpu.plan import PARTS, Part
from gpu.processes import Outcome
from gpu.targets import GOALS

FAULT, UNFINISHED = "fault", "the process ended in it"
"""As in session.py, which imports torch."""

Document = dict[str, Any]


@dataclass
class Store:
    """Records and figures of one card, by part."""

    out: Path
    hardware: Mapping[str, Any]
    about: Mapping[str, Any]  # of every document: versions, commit, command
    dry: bool = False
    records: dict[str, Document] = field(default_factory=dict)
    figures: dict[str, Document] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    def load(self, folders: Sequence[Path]) -> None:
        """Take over what is of this code and card; of two records the later."""
        for folder in folders:
            for part in PARTS:
                found, name = read(folder / self._name(part.document)), part.name
                record = found.get("parts", {}).get(name, {})
                card = found.get("hardware", {}).get("kind")
                fits = card == self.hardware["kind"] and record.get("code") == self._code(part)
                known = self.records.get(name, {}).get("date", "")
                if fits and record.get("date", "") >= known:
                    self.records[name] = record
                    self.figures[name] = found["figures"].get(name, {})

    def outcome(self, name: str) -> str:
        """How a part ended last: as in Outcome, or "partial", or "" if it has not run."""
        return str(self.records.get(name, {}).get("outcome", ""))

    def have(self, name: str, again: bool) -> Document:
        """What a part goes on from. ``again``: entries that failed are tried once more."""
        found = self.figures.get(name, {})
        lines = self.records.get(name, {}).get("lines", {})
        return {"figures": pruned(found, None) if again else found, "lines": dict(lines)}

    def progress(self, part: Part, state: Document) -> None:
        """Figures of a part that runs; what it is cut off in is not among them."""
        self.figures[part.name] = pruned(state["figures"], UNFINISHED)
        self._record(part, state, "partial", "it was running")

    def end(self, part: Part, outcome: Outcome, seconds: float, by_budget: bool) -> None:
        """What came out of a part."""
        figures, kind, reason = outcome.state.get("figures", {}), outcome.kind, outcome.reason
        if kind == "cut off":
            figures = pruned(figures, UNFINISHED) if by_budget else figures
            kind = "partial" if by_budget else "failed"
        if kind == "done":
            faults = list(faulty(figures))
            if faults:
                kind, reason = "failed", "; ".join(f"{name}: {why}" for name, why in faults)[:1500]
            elif outcome.state.get("left_out"):
                kind = "partial"
        self.figures[part.name] = figures
        self._record(part, outcome.state, kind, reason, seconds)

    def _record(
        self, part: Part, state: Document, kind: str, reason: str = "", seconds: float = 0.0
    ) -> None:
        before = self.records.get(part.name, {}).get("seconds", 0.0)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        record = {
            "outcome": kind,
            "seconds": round(before + seconds, 1),
            "date": now,
            "commit": self.about["commit"],
            "code": self._code(part),
        }
        for name, value in (("reason", reason), ("left_out", state.get("left_out", []))):
            record |= {name: value} if value else {}
        values = {name: state.get(name, {}) for name in ("values", "lines")}
        self.records[part.name] = record | {name: v for name, v in values.items() if v}
        self._write(part.document)

    def targets(self, parts: Sequence[Part]) -> list[Target]:
        """Of these parts, measured or not."""
        return [
            Target(
                goal.name,
                self.records.get(part.name, {}).get("values", {}).get(goal.name),
                goal.unit,
                goal.bound,
                goal.sign == "<=",
                goal.stretch,
            )
            for part in parts
            for goal in GOALS.get(part.name, ())
        ]

    def _has_floors(self, document: str) -> bool:
        """Whether its figures are compared with the card's limits, which it then holds too."""
        return document.startswith("engine") and "ceilings" in self.figures

    def _code(self, part: Part) -> str:
        if part.name not in self.digests:
            self.digests[part.name] = digest(part)
        return self.digests[part.name]

    def _name(self, document: str) -> str:
        return f"{document}{'-dry' * self.dry}-{self.hardware['kind']}.json"

    def _write(self, document: str) -> None:
        parts = [part for part in PARTS if part.document == document]
        ran = [part.name for part in parts if part.name in self.records]
        beside = {"ceilings": self.figures["ceilings"]} if self._has_floors(document) else {}
        content = {
            "name": document,
            "hardware": self.hardware,
            **self.about,
            "targets": [target.as_json() for target in self.targets(parts)],
            "parts": {name: self.records[name] for name in ran},
            "figures": beside | {name: self.figures.get(name, {}) for name in ran},
        }
        save(self.out / self._name(document), content)


def short(record: Document) -> str:
    """Why a part ended as it did, in a line: of a traceback its last."""
    lines = record.get("reason", "").strip().splitlines()
    if not lines:
        return ""
    return str(lines[-1 if lines[0].startswith("Traceback") else 0])[:200]


def faulty(found: Any, name: str = "") -> list[tuple[str, str]]:
    """Entries that could not be measured, and why."""
    if not isinstance(found, dict):
        return []
    if FAULT in found:
        return [(name, found[FAULT])]
    return [fault for key, value in found.items() for fault in faulty(value, key)]


def pruned(found: Any, fault: str | None) -> Any:
    """Without the entries that have this fault; None: any."""
    if not isinstance(found, dict):
        return found
    return {
        key: pruned(value, fault)
        for key, value in found.items()
        if not (isinstance(value, dict) and FAULT in value and fault in (None, value[FAULT]))
    }
