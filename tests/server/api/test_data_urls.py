"""Data URLs as libraries, shells and browsers write them."""

import base64
import tracemalloc
from contextlib import suppress
from urllib.parse import quote, unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade_server.api.errors import BadRequest
from saccade_server.api.images import data_urls
from saccade_server.api.images.data_urls import is_data_url, read_data_url, unquoted

DATA = bytes(range(256)) + b"\xfb\xff\xfe"  # has + and / in base64, and padding when cut
TEXT = base64.b64encode(DATA).decode()


@pytest.mark.parametrize(
    "head",
    [
        "data:image/png;base64",
        "DATA:IMAGE/PNG;BASE64",
        "data:;base64",
        "data:base64",
        "data:image/x;a=b;base64",
        "data:image/png;charset=utf-8;base64",
        "data:image/png;name=my_photo.png;base64",
        "data:image/png;name=my%20photo%20(1).png;base64",
        'data:image/png;name="a, b; base64.png";base64',
        'data:image/png;name="x;base64,y.png";base64',
        "data:image/png;name=ein bild.png; base64",
        "data:image/png;name=Bild\u00e4.png;base64",
        "data:application/octet-stream;base64",
        "data:text/html;base64",
        "data:image/png ; base64 ",
        "  data:image/png;base64",
        "\n\tdata:image/png;base64",
        "data:image/png;base64,data:image/png;base64",
        "data:image/png;" + ";".join(f"p{i}={i}" for i in range(50)) + ";base64",
    ],
    ids=lambda head: head[:50],
)
def test_the_head_is_not_read(head):
    assert is_data_url(f"{head},")
    assert read_data_url(f"{head},{TEXT}", 1000, "here") == DATA


def wrapped(end):
    return end.join(TEXT[at : at + 76] for at in range(0, len(TEXT), 76)) + end


@pytest.mark.parametrize(
    "text",
    [
        wrapped("\n"),
        wrapped("\r\n"),
        wrapped(" "),
        wrapped("\n\t"),
        wrapped("%0D%0A"),
        " " + TEXT,
        quote(TEXT, safe=""),
        TEXT.replace("+", "%2b").replace("/", "%2f"),
        base64.urlsafe_b64encode(DATA).decode(),
        TEXT.rstrip("="),
        TEXT + "====",
        TEXT + "#fragment",
    ],
    ids=lambda text: repr(text[-12:]),
)
def test_base64_as_it_is_written(text):
    assert read_data_url(f"data:image/png;base64,{text}", 1000, "here") == DATA


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6])
def test_missing_padding(length):
    data = DATA[-length:]
    text = base64.b64encode(data).decode().rstrip("=")
    assert read_data_url(f"data:;base64,{text}", 100, "here") == data


def test_a_data_url_without_base64():
    assert read_data_url("data:image/png," + quote(DATA), 1000, "here") == DATA
    svg = "data:image/svg+xml;utf8,<svg xmlns='http://www.w3.org/2000/svg'/>"
    assert read_data_url(svg, 1000, "here").startswith(b"<svg")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("data:", "reads 'data:image/png;base64,...'"),
        ("data:,", "empty|base64"),
        ("data:image/png;base64", "reads 'data:image/png;base64,...'"),
        ("data:image/png,aGk=", "does not say base64"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64,====", "empty"),
        ("data:image/png;base64,%20%0A", "empty"),
        ("data:image/png;base64,aGkaX", "something is missing"),
        ("data:image/png;base64,aG=kaa", "the character '='"),
        ("data:image/png;base64,aG!k", "the character '!'"),
        ("data:image/png;base64,aG\\nk", r"the character '\\\\'"),
        ("data:image/png;base64,%ff%00", "the character"),
        ("data:image/png;base64,\u00fc", "not ASCII"),
        ("data:image/png;base64,b'aGk='", "Python bytes; decode"),
        ("aGk=", "reads 'data:image/png;base64,...'"),
        ("data:image/png;" + "x" * 10_000 + ";base64,aGk=", "does not say base64"),
    ],
    ids=lambda url: url[:40],
)
def test_what_is_refused_says_what_helps(url, says):
    with pytest.raises(BadRequest, match=says) as refused:
        read_data_url(url, 100, "here")
    assert refused.value.code in ("invalid_image_url", "invalid_image")
    assert refused.value.param == "here"
    assert len(refused.value.message) < 150


@pytest.mark.parametrize("text", ["A" * 10_000, "%41" * 10_000, "\n".join("A" * 10_000)])
def test_too_long(text):
    for url in (f"data:image/png;base64,{text}", f"data:image/png,%00{text}"):
        with pytest.raises(BadRequest) as refused:
            read_data_url(url, 100, "here")
        assert refused.value.code == "image_too_large"


def test_the_limit_is_exact():
    for size in (98, 99, 100, 101, 102, 103, 104):
        url = "data:;base64," + base64.b64encode(bytes(size)).decode()
        if size <= 100:
            assert len(read_data_url(url, 100, "here")) == size
        else:
            with pytest.raises(BadRequest):
                read_data_url(url, 100, "here")


@pytest.mark.parametrize("url", ["http://a/b.png", "", "/data:x", "xdata:image/png;base64,aGk="])
def test_other_urls(url):
    assert not is_data_url(url)


@given(
    st.lists(st.sampled_from([b"%", b"4", b"a", b"F", b"g", b"%4", b"%41", b"%zz"]), max_size=40)
)
def test_percent_signs(pieces):
    data = b"".join(pieces)
    assert unquoted(data) == unquote_to_bytes(data)


@pytest.mark.parametrize("unit", [b"%41", b"%", b"a%2", b"%%41", b"+"])
def test_percent_signs_over_the_edges_of_pieces(unit, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(data_urls, "_PIECE_BYTES", 7)
    data = unit * 50
    assert unquoted(data) == unquote_to_bytes(data)


@pytest.mark.parametrize("head", ["data:image/png;base64,", "data:,"])
@pytest.mark.parametrize("filling", ["%", "%41", "A%"])
def test_percent_signs_take_little_memory(head, filling):
    """An object for each of them takes dozens of times as much as the URL."""
    url = head + filling * (3_000_000 // len(filling))
    tracemalloc.start()
    try:
        with suppress(BadRequest):
            read_data_url(url, 10**7, "here")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * len(url)
