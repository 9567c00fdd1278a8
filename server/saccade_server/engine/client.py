"""How the API room sees an engine, wherever it runs: submit, abort, stats."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol

from saccade_server.engine.request import EngineInfo, EngineOutput, EngineStats, GenerateRequest
from saccade_server.engine.watchdog import Lag


class EngineDeadError(RuntimeError):
    """The engine ended or stopped answering; nothing more can be generated."""


class CapacityError(RuntimeError):
    """The engine has no room for this request now; try again later."""


News = int | EngineOutput | EngineDeadError
"""Of one sequence: a token and nothing else, more than that, or that nothing will come any more."""


class EngineClient(Protocol):
    """An engine in this process or in another one."""

    @property
    def info(self) -> EngineInfo:
        """The loaded model and the engine's limits."""
        ...

    @property
    def alive(self) -> bool:
        """False once the engine has died."""
        ...

    @property
    def full(self) -> bool:
        """True if a request would be refused with :class:`CapacityError` now."""
        ...

    @property
    def lag(self) -> Lag:
        """How long the engine has given no sign of life, or has had work and made no step.

        Known without asking the engine; no lag while the model loads.
        """
        ...

    def open(self, request: GenerateRequest, deliver: Callable[[News], None]) -> Callable[[], None]:
        """Generate one sequence; ``deliver`` is given its news, in order, on the event loop.

        The last piece of news is an output with a ``finish_reason``, or an error.

        Returns:
            A function that ends the sequence early and frees what the sequence holds; it does
            nothing once the sequence has ended.

        Raises:
            EngineDeadError: nothing is generated any more.
            CapacityError: there is no room now.
        """
        ...

    def submit(self, request: GenerateRequest) -> AsyncIterator[EngineOutput]:
        """As :meth:`open`, for whoever would rather iterate.

        Leaving the iterator early aborts the sequence and frees what it held.

        Raises:
            EngineDeadError: before or during iteration.
            CapacityError: on the first step of the iteration.
        """
        ...

    def abort(self, request_id: str) -> None:
        """Stop a sequence; unknown or finished ids are ignored."""
        ...

    async def stats(self) -> EngineStats:
        """Load and lifetime counters."""
        ...

    async def close(self) -> None:
        """Stop the engine and wait until it has ended."""
        ...
