import pytest

from saccade_client import sse
from saccade_client.sse import Event, EventTooLarge, SSEDecoder

STREAM = (
    "\ufeff: keep-alive\r\n\r\n"
    "event: note\r\ndata: zwölf 眼\r\nid: 7\r\nretry: 10\r\n\r\n"
    "data: a\ndata:b\ndata:  c\n\n"
    "data: mac\r\rdata\n\n"
    "unknown: x\n\n"
    "event: lonely\n\n"
    "data: [DONE]\n\n"
).encode()
EVENTS = [
    Event("zwölf 眼", "note"),
    Event("a\nb\n c"),
    Event("mac"),
    Event(""),
    Event("[DONE]"),
]


def decode(*chunks: bytes) -> list[Event]:
    decoder = SSEDecoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, len(STREAM)])
def test_events_do_not_depend_on_how_the_bytes_were_cut(size):
    chunks = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    assert decode(*chunks) == EVENTS


def test_every_single_cut_gives_the_same_events():
    for at in range(len(STREAM) + 1):
        assert decode(STREAM[:at], b"", STREAM[at:]) == EVENTS


def test_a_crlf_cut_in_two_is_one_line_end():
    assert decode(b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n") == [Event("a\nb")]


def test_an_event_cut_short_is_not_delivered():
    assert decode(b"data: whole\n\ndata: half") == [Event("whole")]
    assert decode(b"data: whole\n\ndata: no blank line\n") == [Event("whole")]


def test_invalid_utf8_is_replaced_not_fatal():
    assert decode(b"data: \xff!\n\n") == [Event("�!")]


@pytest.mark.parametrize("line", [b"data: xxxxxxxx", b"data: xxxxxxxx\n", b": xxxxxxxxxxxxxxx"])
def test_an_endless_event_is_refused(monkeypatch: pytest.MonkeyPatch, line):
    monkeypatch.setattr(sse, "LARGEST_EVENT", 100)
    with pytest.raises(EventTooLarge, match="100 bytes"):
        decode(*[line] * 20)


def test_many_small_events_are_not_an_endless_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sse, "LARGEST_EVENT", 100)
    assert len(decode(*[b"data: xxxxxxxx\n\n"] * 50)) == 50
