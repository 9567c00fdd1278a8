"""Parts in order of importance within a time budget, whatever becomes of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from threading import Lock

from gpu.plan import Part, rounds
from gpu.processes import Outcome, Process, State
from gpu.store import Store, short

MARGIN = 6.0
"""Seconds between the end that a part plans for and the one at which it is ended."""

RESERVE = 9.0
"""Seconds of the budget for what comes behind the last part."""

RESTARTS = 6
"""Of one part whose process dies, each time behind more entries than before."""

Start = Callable[[Callable[[State], None]], Process]


@dataclass
class Scheduler:
    """Runs parts. ``end``: of the budget, in seconds of time.time()."""

    store: Store
    start: Start
    end: float
    dry: bool = False
    most: int = 32
    say: Callable[[str], None] = print
    _open: tuple[str, Process] | None = None
    _running: set[Process] = field(default_factory=set)
    _stopped: bool = False
    _lock: Lock = field(default_factory=Lock)

    def run(self, parts: Sequence[Part]) -> None:
        """What is not measured yet, then once more what failed."""
        outcomes = {part.name: self.store.outcome(part.name) for part in parts}
        fresh = [part for part in parts if outcomes[part.name] in ("", "partial", "left out")]
        failed = [part for part in parts if outcomes[part.name] in ("failed", "died")]
        if done := [part.name for part in parts if part not in fresh + failed]:
            self.say(f"measured already, of this code on this card: {', '.join(done)}")
        try:
            for some in [*rounds(fresh), *rounds(failed)]:
                self._round(some, again=some[0] in failed)
        finally:
            self.close()

    def close(self) -> None:
        """End every process, and with it the parts that run."""
        self._stopped = True
        for process in [*self._running]:
            process.kill()
        self._running.clear()
        self._open = None

    def _round(self, parts: Sequence[Part], again: bool) -> None:
        parts = [part for part in parts if self._has_time(part)]
        if len(parts) > 1:
            self._keep(None)
            with ThreadPoolExecutor(len(parts)) as pool:
                try:
                    list(pool.map(partial(self._part, again=again, alone=False), parts))
                except BaseException:
                    self.close()  # or the threads would be waited for
                    raise
        for part in parts if len(parts) == 1 else ():
            self._part(part, again, alone=True)

    def _has_time(self, part: Part) -> bool:
        left = self.end - RESERVE - time.time()
        if self.dry or left >= part.least:
            return True
        self.say(f"{part.name}: left out, {max(left, 0):.0f} s are too few")
        return False

    def _part(self, part: Part, again: bool, alone: bool) -> None:
        began = now = time.time()
        self.say(f"{part.name}, with {self.end - began:.0f} s left")
        budget = self.end - RESERVE
        end = began + part.limit if self.dry else min(began + part.limit, budget)
        have = self.store.have(part.name, again)
        for _ in range(RESTARTS):
            process = self._process(part, alone)
            job = {"run": part.run, "model": part.model, "dry": self.dry, "most": self.most}
            job |= {"deadline": end - MARGIN, "have": have}
            with self._lock:
                known = dict(self.store.figures)
            outcome = process.run(job, known, end)
            with self._lock:
                if self._stopped:  # which ended the process, and not the part
                    outcome = Outcome("cut off", outcome.state, "the run was stopped")
                over = self._stopped or end >= budget
                self.store.end(part, outcome, time.time() - now, by_budget=over)
            if outcome.kind in ("died", "cut off") or not alone:
                self._end(process)
            now = time.time()
            entries = _entries(outcome.state)
            went_on = entries > _entries(have) and end - now > part.least
            if outcome.kind != "died" or not went_on:
                break
            self.say(f"{part.name}: {outcome.reason.splitlines()[0][:160]}; it goes on behind that")
            have = {name: outcome.state.get(name, {}) for name in ("figures", "lines")}
        self._tell(part, now - began)

    def _tell(self, part: Part, seconds: float) -> None:
        record = self.store.records[part.name]
        why = f": {short(record)}" if short(record) else ""
        self.say(f"{part.name}: {record['outcome']} in {seconds:.0f} s{why}")

    def _process(self, part: Part, alone: bool) -> Process:
        """That of the part's lane, if it is open; a GPU is not shared by what is timed."""
        if alone:
            self._keep(part.lane)
        if self._open is not None and alone:
            process = self._open[1]
            process.watch = partial(self._watch, part)
            return process
        process = self.start(partial(self._watch, part))
        self._running.add(process)
        if alone:
            self._open = part.lane, process
        return process

    def _keep(self, lane: str | None) -> None:
        """End the open process unless it is of this lane."""
        if self._open is not None and (self._open[0] != lane or not self._open[1].alive):
            self._end(self._open[1])

    def _end(self, process: Process) -> None:
        process.kill()
        self._running.discard(process)
        if self._open is not None and self._open[1] is process:
            self._open = None

    def _watch(self, part: Part, state: State) -> None:
        with self._lock:
            self.store.progress(part, state)


def _entries(state: State) -> int:
    """How many entries, on all levels: a measure of progress."""

    def count(found: object) -> int:
        return 1 + sum(map(count, found.values())) if isinstance(found, dict) else 1

    return count(state.get("figures", {}))
