"""Writes of one turn of the event loop are one write; none is lost, late or out of order."""

import asyncio

from saccade_server.api.layers.joining import MOST_HELD, JoiningTransport


class Wire(asyncio.Transport):
    """Keeps what is done to it, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[bytes | str] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.done.append(bytes(data))

    def close(self) -> None:
        self.done.append("close")

    def abort(self) -> None:
        self.done.append("abort")

    def write_eof(self) -> None:
        self.done.append("eof")


def written(*steps: object) -> list[bytes | str]:
    """What the wire gets of these: bytes are written, None ends the turn, names are called."""

    async def main() -> list[bytes | str]:
        wire = Wire()
        joining = JoiningTransport(wire, asyncio.get_running_loop())
        for step in steps:
            if isinstance(step, bytes):
                joining.write(step)
            elif isinstance(step, str):
                getattr(joining, step)()
            else:
                await asyncio.sleep(0)
        found = list(wire.done)
        await asyncio.sleep(0)
        assert wire.done == found
        return found

    return asyncio.run(main())


def test_writes_of_one_turn_are_one() -> None:
    assert written(b"a", b"", b"b", None) == [b"ab"]
    assert written(b"a", None, b"b", b"c", None) == [b"a", b"bc"]
    assert written(b"", None) == []


def test_what_ends_the_connection_comes_last() -> None:
    assert written(b"a", b"b", "close") == [b"ab", "close"]
    assert written(b"a", "write_eof", None) == [b"a", "eof"]
    assert written(b"a", "flush", b"b", None) == [b"a", b"b"]
    assert written(b"a", "abort", None) == ["abort"]


def test_much_is_not_held() -> None:
    much = b"x" * MOST_HELD
    assert written(b"a", much) == [b"a" + much]
    assert written(much, None) == [much]
    assert written(b"a", much, b"b", None) == [b"a" + much, b"b"]
