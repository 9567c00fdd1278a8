"""Where records go: all to standard error, in one format, whichever library makes them."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import threading
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import msgspec

from saccade_server.logs.formats import (
    WITH_WORDS,
    JsonFormatter,
    LogFormat,
    SafeFormatter,
    TextFormatter,
)

OURS = ("saccade", "saccade_server", "saccade_interventions", "saccade_kernels")
"""The loggers that follow the level that was asked for.

Others are heard from warnings on: what libraries tell who debugs them is made of what clients
send, such as URLs and headers.
"""

logger = logging.getLogger("saccade")


@dataclass(frozen=True)
class LogSettings:
    """``level`` is the name of one, in capitals."""

    level: str = "WARNING"
    format: LogFormat = LogFormat.TEXT

    def encode(self) -> str:
        """As an argument of another process."""
        return msgspec.json.encode(asdict(self)).decode()

    @staticmethod
    def decode(text: str) -> LogSettings:
        """What :meth:`encode` gave."""
        return msgspec.json.decode(text, type=LogSettings)


class LogHandler(logging.StreamHandler[Any]):
    """Writes to standard error; who reads it may leave."""

    def __init__(self, settings: LogSettings, formatter: SafeFormatter) -> None:
        super().__init__(sys.stderr)
        self.settings = settings
        self.setFormatter(formatter)

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing: logging itself would write the record's parts, whatever they are."""


def set_up(
    settings: LogSettings, process: str = "api", *, words: bool = False, surprises: bool = True
) -> None:
    """Send the records of this process to standard error, unless they go somewhere already.

    Args:
        process: its name among a server's processes.
        words: exceptions are quoted, see :class:`~saccade_server.logs.formats.SafeFormatter`.
        surprises: what ends the process or one of its threads is a record too.
    """
    root = logging.getLogger()
    if root.handlers:
        return
    kind = JsonFormatter if settings.format is LogFormat.JSON else TextFormatter
    level = logging.getLevelNamesMapping()[settings.level]
    root.addHandler(LogHandler(settings, kind(process, words)))
    root.setLevel(max(level, logging.WARNING))
    for name in OURS:
        logging.getLogger(name).setLevel(level)
    # Of a slow callback asyncio tells the arguments.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    logging.captureWarnings(True)
    if surprises:
        sys.excepthook = _ended
        threading.excepthook = _thread_ended
        sys.unraisablehook = _ignored


def settings_now() -> LogSettings:
    """What :func:`set_up` was given; without it, text from the root logger's level on."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogHandler):
            return handler.settings
    return LogSettings(logging.getLevelName(logging.getLogger().getEffectiveLevel()))


def as_json() -> bool:
    """True if all that this process writes is to be JSON."""
    return settings_now().format is LogFormat.JSON


def gather() -> None:
    """Take the libraries' loggers that write by themselves; call it once they are imported."""
    for each in list(logging.root.manager.loggerDict.values()):
        if isinstance(each, logging.Logger):
            own = [handler for handler in each.handlers if _writes_to_terminal(handler)]
            for handler in own:
                each.removeHandler(handler)
                each.propagate = True


def loop_failed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An event loop's exception handler: asyncio's own writes callbacks with their arguments."""
    said = PLAIN_WORDS.match(str(context.get("message", "")))
    what = said[0].strip() if said else "it failed"
    logger.error("the event loop: %s", what, exc_info=context.get("exception"))


PLAIN_WORDS = re.compile(r"[A-Za-z ,.']{1,120}")


def _writes_to_terminal(handler: logging.Handler) -> bool:
    streams = (sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__)
    return isinstance(handler, logging.StreamHandler) and handler.stream in streams


def _ended(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logger.critical("the process ends", exc_info=(kind, error, trace), extra=WITH_WORDS)


def _thread_ended(arguments: threading.ExceptHookArgs) -> None:
    error = arguments.exc_value
    if error is not None:
        name = arguments.thread.name if arguments.thread is not None else "?"
        logger.error("the thread %s ends", name, exc_info=error)


def _ignored(arguments: Any) -> None:
    if arguments.exc_value is not None:
        logger.error("an error where nobody can be told", exc_info=arguments.exc_value)
