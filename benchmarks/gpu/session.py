"""A part that runs: its figures, saved as they come, and the time that it has.

What runs is a function of a :class:`Session` and a dictionary that it fills. Its entries are
measured one by one (:meth:`Session.measure`). So a part that was cut off goes on behind the entries
that it has, and one that takes the process down is not tried again at once.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpu.targets import BY_NAME
from gpu.timing import Call, measure

AGAIN = 75
"""Exit code of a process whose GPU no longer answers."""

FAULT = "fault"
"""Of an entry that could not be measured: why."""

GOALS = "goals"
"""Of an entry: the values that it has for goals, by their names."""

UNFINISHED = "the process ended in it"

Figures = dict[str, Any]


class GpuGone(BaseException):
    """The GPU no longer answers this process; no part can go on in it."""


@dataclass
class Session:
    """The state of a part. ``known``: figures of others. ``lines`` are figures that have no target,
    as the summary shows them.
    """

    deadline: float
    state: Path | None = None
    dry: bool = False
    most: int = 32  # largest batch
    known: Figures = field(default_factory=dict)
    figures: Figures = field(default_factory=dict)
    lines: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.time)
    reached: dict[str, float] = field(default_factory=dict)  # by what runs now

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry else "cuda")

    @property
    def left(self) -> float:
        """Seconds that this part has."""
        return self.deadline - time.time()

    def has(self, seconds: float, what: str) -> bool:
        """True if there is time for something; otherwise notes that it was left out."""
        if self.left >= (0 if self.dry else seconds):
            return True
        self.left_out.append(what)
        return False

    def measure(
        self, found: Figures, label: str, seconds: float, run: Callable[[Figures], object]
    ) -> Figures | None:
        """An entry, filled by ``run`` if no earlier run has it.

        Returns:
            The entry; None if there is none: no time, or a failure, which it says then.
        """
        if label in found:
            return None if FAULT in found[label] else found[label]
        if not self.has(seconds, label):
            return None
        found[label] = {FAULT: UNFINISHED}
        self.save()
        cell: Figures = {}
        before, self.reached = self.reached, {}
        try:
            run(cell)
        except Exception as error:
            # The traceback, and with it the frames that hold tensors, ends here.
            found[label] = {**cell, FAULT: f"{error!r}"[:400], "at": traceback.format_exc(limit=-3)}
            self.say(f"{label} FAILED: {error!r}"[:300])
            self.check_gpu()
            return None
        finally:
            mine, self.reached = self.reached, before
        found[label] = cell | ({GOALS: mine} if mine else {})
        self.save()
        measured: Figures = found[label]
        return measured

    def reach(self, name: str, value: float) -> None:
        """Note a goal's value, with the entry that is measured now; the worst counts."""
        before = self.reached.get(name, value)
        self.reached[name] = BY_NAME[name].worse(before, value)

    @property
    def values(self) -> dict[str, float]:
        """Of all goals: the worst of all entries, those of earlier runs included."""
        found = dict(self.reached)
        for goals in _goals(self.figures):
            for name, value in goals.items():
                found[name] = BY_NAME[name].worse(found.get(name, value), value)
        return found

    def line(self, name: str, text: str) -> None:
        """Note a figure that has no target."""
        self.lines[name] = text

    def time(
        self, found: Figures, name: str, calls: Sequence[Call], graph: bool = True
    ) -> float | None:
        """Time calls into ``found[name]``. Seconds, or None if they fail: that is a result too."""
        try:
            timing = measure(calls, self.device, graph)
        except Exception as error:
            found[name] = {"error": repr(error)[:400]}
            self.say(f"{name} fails: {repr(error)[:200]}")
            self.check_gpu()
            return None
        found[name] = timing.as_json()
        return timing.seconds

    def say(self, *words: object) -> None:
        """A line of progress, with the part's seconds."""
        text = " ".join(map(str, words))
        print(f"  [{time.time() - self.began:5.1f}] {text[:240]}", flush=True)
        self.save()

    def check_gpu(self) -> None:
        """Whether the GPU still answers.

        Raises:
            GpuGone: it does not.
        """
        if self.dry:
            return
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise GpuGone(str(error)) from error

    def save(self, **more: object) -> None:
        """What there is, for whoever started this process: also if it ends before it says more."""
        if self.state is None:
            return
        kept = ("figures", "values", "lines", "left_out")
        text = json.dumps({name: getattr(self, name) for name in kept} | more)
        beside = self.state.with_suffix(".new")
        beside.write_text(text)
        os.replace(beside, self.state)


def _goals(found: Any) -> Iterator[dict[str, float]]:
    if isinstance(found, dict):
        yield found.get(GOALS, {})
        for value in found.values():
            yield from _goals(value)
