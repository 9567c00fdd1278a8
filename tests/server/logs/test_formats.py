"""Records as lines: whole, safe, and without the words of exceptions."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextvars import copy_context
from typing import Any

import pytest

from saccade_server.logs.context import fields, request_id, trace_context
from saccade_server.logs.formats import WITH_WORDS, JsonFormatter, SafeFormatter, TextFormatter
from saccade_server.logs.setup import LogFormat, LogSettings
from saccade_server.logs.tracebacks import MOST_ERRORS, MOST_FRAMES, describe
from saccade_server.trace_context import TraceContext
from saccade_testing.launch import environment

SECRET = "the prompt: what is in my photo?"
FORGED = "x\n2026-11-28 00:00:00,000 INFO saccade.access GET /forged 200\x1b[1A"


@pytest.fixture(params=[TextFormatter, JsonFormatter])
def formatter(request: pytest.FixtureRequest) -> SafeFormatter:
    made: SafeFormatter = request.param("api")
    return made


def record(message: str, *values: Any, error: BaseException | None = None, **extra: Any) -> Any:
    shown = None if error is None else (type(error), error, error.__traceback__)
    made = logging.LogRecord("saccade.x", logging.ERROR, "f.py", 1, message, values, shown)
    vars(made).update(extra)
    return made


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def failures() -> Iterator[BaseException]:
    yield raised(ValueError(SECRET))
    yield raised(KeyError(SECRET))
    yield raised(UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET))
    yield raised(ExceptionGroup(SECRET, [ValueError(SECRET)]))
    try:
        try:
            raise ValueError(SECRET)
        except ValueError as first:
            raise TypeError(SECRET) from first
    except TypeError as caused:
        yield caused
    try:
        try:
            raise ValueError(SECRET)
        except ValueError:
            raise TypeError(SECRET)  # noqa: B904
    except TypeError as during:
        yield during


def test_a_message_is_one_line(formatter: SafeFormatter) -> None:
    line = formatter.format(record("said: %s", FORGED, **fields(key_name=FORGED, n=[FORGED])))
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line


@pytest.mark.parametrize("error", [*failures()], ids=lambda error: type(error).__name__)
def test_words_of_exceptions_stay_out(formatter: SafeFormatter, error: BaseException) -> None:
    line = formatter.format(record("it failed", error=error))
    assert SECRET not in line
    assert type(error).__name__ in line
    assert "test_formats.py" in line
    if error.__cause__ or error.__context__:
        assert "ValueError" in line
    assert SECRET in formatter.format(record("it failed", error=error, **WITH_WORDS)).replace(
        "\\n", "\n"
    )


def test_what_the_system_says_is_written(formatter: SafeFormatter) -> None:
    line = formatter.format(
        record("x", error=raised(OSError(28, "No space left on device", SECRET)))
    )
    assert "No space left on device" in line
    assert SECRET not in line
    assert SECRET not in formatter.format(record("x", error=raised(OSError(SECRET))))


def test_no_line_of_an_exception_looks_like_a_record() -> None:
    text = TextFormatter("engine", words=True).format(record("x", error=raised(ValueError(FORGED))))
    assert all(line.startswith("    ") for line in text.splitlines()[1:])
    assert "\x1b" not in text


def test_exceptions_end() -> None:
    def deep(left: int) -> None:
        if left:
            deep(left - 1)
        raise ValueError

    try:
        deep(300)
    except ValueError as error:
        lines = describe(error, words=True).lines
        assert len(lines) <= 2 * MOST_FRAMES + 1
    chained: BaseException = ValueError("0")
    for number in range(50):
        made = ValueError(str(number))
        made.__cause__, chained = chained, made
    assert len(describe(chained, words=True).lines) < 2 * MOST_ERRORS
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first  # a circle
    assert describe(first, words=True).words == "a"


def test_a_record_that_does_not_fit_is_still_written(formatter: SafeFormatter) -> None:
    assert "three of %d" in formatter.format(record("three of %d", "x"))

    class Odd:
        def __str__(self) -> str:
            raise RuntimeError

    assert "odd %s" in formatter.format(record("odd %s", Odd()))


def test_json() -> None:
    entry = json.loads(
        JsonFormatter("engine", words=True).format(
            record(
                "é %s", "\u2028", error=raised(ValueError("why")), **fields(tokens=3, message="no")
            )
        )
    )
    assert entry.pop("time").endswith("Z")
    assert entry.pop("pid") > 0
    error = entry.pop("exception")
    assert (error["type"], error["message"]) == ("ValueError", "why")
    assert error["stack"][-1] == "ValueError: why"
    assert entry == {
        "level": "error",
        "logger": "saccade.x",
        "process": "engine",
        "message": "é \u2028",
        "tokens": 3,
    }


def test_json_is_ascii_and_strict() -> None:
    line = JsonFormatter("api").format(record("é\u202e\ud800", **fields(a=float("inf"), b=[1e999])))
    assert line.isascii()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name))["a"] is None


def test_where_code_runs_is_written(formatter: SafeFormatter) -> None:
    def within() -> str:
        request_id.set("r-1")
        trace_context.set(TraceContext("ab" * 16, "cd" * 8, True))
        return formatter.format(record("x"))

    line = copy_context().run(within)
    assert "ab" * 16 in line
    assert "trace_id" not in formatter.format(record("x"))
    if isinstance(formatter, JsonFormatter):
        assert json.loads(line)["request_id"] == "r-1"
        assert json.loads(line)["span_id"] == "cd" * 8


PROCESS = """
import asyncio, logging, sys, threading, warnings
from saccade_server.logs.setup import LogSettings, gather, loop_failed, set_up
library = logging.getLogger("library")
library.addHandler(logging.StreamHandler(sys.stderr)); library.propagate = False
set_up(LogSettings.decode(sys.argv[1]))
gather()
library.debug("SECRET"); library.info("SECRET"); library.warning("heard")
logging.getLogger("saccade.x").debug("ours")
logging.getLogger("saccade.x").info("%d", "SECRET")
warnings.warn("careful")
def work(): raise ValueError("SECRET")
thread = threading.Thread(target=work, name="worker"); thread.start(); thread.join()
class Odd:
    def __del__(self): raise ValueError("SECRET")
Odd()
async def main():
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(loop_failed)
    loop.call_soon(lambda said: 1 / 0, "SECRET")
    async def forgotten(said): raise ValueError(said)
    task = loop.create_task(forgotten("SECRET"))
    await asyncio.sleep(0.01)
asyncio.run(main())
raise RuntimeError("the end")
"""


@pytest.mark.parametrize("form", list(LogFormat))
def test_everything_a_process_writes_is_a_record(form: LogFormat) -> None:
    settings = LogSettings("DEBUG", form)
    assert LogSettings.decode(settings.encode()) == settings
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, settings.encode()],
        capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "SECRET" not in done.stderr
    expected = ["heard", "ours", "careful", "worker", "Exception in callback", "never retrieved",
                "nobody can be told", "the end", "does not fit"]  # fmt: skip
    for part in expected:
        assert part in done.stderr
    lines = done.stderr.splitlines()
    if form is LogFormat.JSON:
        entries = [json.loads(line) for line in lines]
        assert len(entries) == len(expected)
        assert {entry["process"] for entry in entries} == {"api"}
    else:
        firsts = [line for line in lines if not line.startswith("    ")]
        assert all(line[:2] == "20" for line in firsts)
        assert len(firsts) == len(expected)
