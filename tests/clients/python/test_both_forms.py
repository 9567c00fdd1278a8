"""The synchronous and the asynchronous client are one surface: names, parameters, answers."""

import inspect
import re

import saccade_client as sdk
from saccade_client import async_connection, connection

# What differs between the two by nature, as the asynchronous one writes it.
OF_OLD = {
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "aclose": "close",
}
WORDS = (
    (r"\bAsync(?=[A-Z])", ""),
    (r"\b(await|async) ", ""),
    (r"\basynccontextmanager\b", "contextmanager"),
    (r"\baclosing\b", "closing"),
    (r"\baread\b", "read"),
    (r"\baclose\b", "close"),
    (r"\b__a(enter|exit|iter)__", r"__\1__"),
)


def members(kind):
    own = {
        name: value
        for name, value in inspect.getmembers(kind)
        if not name.startswith("_") or name in {*OF_OLD, *OF_OLD.values(), "__init__"}
    }
    return {OF_OLD.get(name, name): value for name, value in own.items()}


def translated(text):
    for pattern, word in WORDS:
        text = re.sub(pattern, word, text)
    return text


def signature(member):
    if not callable(member):
        return type(member).__name__
    found = inspect.signature(member)
    return [translated(f"{item}") for item in found.parameters.values()], translated(
        str(found.return_annotation)
    )


def compared(one, other, except_for=()):
    here, there = members(one), members(other)
    assert here.keys() == there.keys()
    for name in here.keys() - set(except_for):
        assert signature(here[name]) == signature(there[name]), name


def test_the_clients():
    # Their constructors take a transport, a client and a sleep, each of its own kind.
    compared(sdk.Saccade, sdk.AsyncSaccade, except_for=["__init__"])
    here, there = (
        inspect.signature(kind.__init__).parameters for kind in (sdk.Saccade, sdk.AsyncSaccade)
    )
    assert list(here) == list(there)
    assert {name: item.kind for name, item in here.items()} == {
        name: item.kind for name, item in there.items()
    }


def test_the_streams():
    compared(sdk.Stream, sdk.AsyncStream)


def test_what_awaits_and_what_does_not():
    """The asynchronous client's methods are awaited or entered, and none of the other's."""
    for name, member in members(sdk.AsyncSaccade).items():
        if inspect.isfunction(member) and name != "__init__":
            inner = inspect.unwrap(member)
            assert inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner), name
    for name, member in members(sdk.Saccade).items():
        assert not inspect.iscoroutinefunction(inspect.unwrap(member)), name


def source(member):
    """What a method says, without line breaks and brackets, which awaiting adds."""
    return re.sub(r"[\s()]+", "", translated(inspect.getsource(member)))


def test_the_methods_say_the_same_line_by_line():
    here, there = members(sdk.Saccade), members(sdk.AsyncSaccade)
    # A link is fetched when an array is asked for, which an attribute cannot await.
    for name in here.keys() - {"load_trace", "__init__"}:
        if inspect.isfunction(here[name]):
            assert source(here[name]) == source(there[name]), name


def test_all_of_the_connection_is_in_both():
    here = {name for name in vars(connection.Connection) if not name.startswith("__")}
    there = {name for name in vars(async_connection.AsyncConnection) if not name.startswith("__")}
    assert here - {"_fetch_trace", "close"} == there - {"aclose"}
