"""Load a model: the weights into a process of their own, tokenizer and processor into this one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from saccade_server.engine.client import EngineDeadError
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.remote import RemoteEngine
from saccade_server.models.prompt import PromptProcessor

Result = TypeVar("Result")


class ModelLoadError(Exception):
    """The model cannot be loaded; the message says why."""


async def load(config: EngineConfig) -> tuple[RemoteEngine, PromptProcessor]:
    """Both parts, side by side; what fails first ends the other.

    Raises:
        ModelLoadError: one of them cannot be loaded.
        OSError: there is no place for the engine's socket.
    """
    starting = asyncio.create_task(RemoteEngine.start(config))
    # A download cannot be called off, but nobody has to wait for it.
    reading = in_daemon_thread(lambda: _prompts(config.model))
    try:
        engine, prompts = await asyncio.gather(starting, reading)
    except BaseException as error:
        starting.cancel()
        (ended,) = await asyncio.gather(starting, return_exceptions=True)
        if isinstance(ended, RemoteEngine):
            await ended.close()
        if isinstance(error, EngineDeadError | TimeoutError):
            raise ModelLoadError(str(error)) from error
        raise
    return engine, prompts


def _prompts(model: str) -> PromptProcessor:
    try:
        return PromptProcessor.load(model)
    except (ValueError, OSError) as error:
        raise ModelLoadError(str(error)) from error


def in_daemon_thread(work: Callable[[], Result]) -> asyncio.Future[Result]:
    """Do ``work`` in a thread that the end of the process does not wait for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except Exception as error:
            failure = error
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="saccade-load", daemon=True).start()
    return future
