"""Traces of answers as arrays: inline, in a text, behind a link; and what a notebook shows."""

import asyncio
import base64
import re
import struct
import sys
import xml.etree.ElementTree as ElementTree
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

import saccade_client as sdk
from saccade_client import traces
from saccade_client.trace_view import png
from saccade_testing.api.bodies import PICTURE
from saccade_testing.api.server import check_servers, start_server

IMAGE = base64.b64decode(PICTURE.partition(",")[2])
KINDS = {"entropy": True}


@pytest.fixture(scope="module")
def running():
    server = start_server(served_model_name="tiny", api_keys=("k",))
    yield server
    server.stop()
    check_servers()


@pytest.fixture
def client(running):
    with sdk.Saccade(running.url, "k") as client:
        yield client


def made(**arrays):
    """A trace with arrays as they come with an answer."""
    entries = {
        name: {
            "dtype": values.dtype.name,
            "shape": list(values.shape),
            "axes": list(axes),
            "unit": "share of attention",
            "coordinates": {
                axis: list(range(10, 10 + size))
                for axis, size in zip(axes, values.shape, strict=True)
                if axis not in ("height", "width", "class")
            },
            "data": values.tolist(),
        }
        for name, (values, axes) in arrays.items()
    }
    view = {"start": 3, "length": 6, "grid": [2, 3], "box": [0, -0.5, 1, 1.5], "size": [30, 20]}
    return sdk.Trace.model_validate(
        {"prompt_tokens": 11, "images": [[view]], "arrays": entries, "bytes": 4}
    )


def test_an_answer_without_one_has_none(client):
    assert client.chat("Hi").trace is None


@pytest.mark.parametrize("form", [{}, {"encoding": "base64"}, {"delivery": "link"}], ids=str)
def test_arrays_whatever_way_they_come(client, form):
    answer = client.chat("Hi", trace=KINDS | form, max_tokens=4)
    trace = answer.trace
    array = trace["entropy"]
    first = trace.prompt_tokens - 1
    assert array.axes == ("row",)
    assert array.coordinates == {"row": tuple(range(first, first + 4))}
    assert array.values.dtype == np.float32
    assert np.array_equal(array, np.arange(first, first + 4))
    assert ("entropy" in trace, len(trace), trace.keys()) == (True, 1, ["entropy"])
    assert "share" not in repr(array)
    with pytest.raises(KeyError):
        trace["masses"]


def test_a_link_is_fetched_once(client, running):
    trace = client.chat("Hi", trace=KINDS | {"delivery": "link"}, max_tokens=4).trace
    assert trace.pending
    assert trace["entropy"].shape == (4,)
    assert not trace.pending
    assert client.load_trace(trace) is trace
    assert trace["entropy"].values is trace["entropy"].values
    assert ("GET", "/v1/traces/{digest}", 200) in running.documented.answered


@pytest.mark.parametrize("form", [{}, {"delivery": "link"}], ids=str)
def test_streams_and_several_choices(client, form):
    options = {"trace": KINDS | form, "max_tokens": 3, "n": 2}
    whole = client.complete("Hi", **options)
    with client.stream_complete("Hi", **options) as stream:
        last = [chunk for chunk in stream if any(c.trace for c in chunk.choices)]
    assert len(last) == 2
    for streamed, choice in zip(stream.final.choices, whole.choices, strict=True):
        assert streamed.trace == choice.trace
        assert np.array_equal(streamed.trace["entropy"], choice.trace["entropy"])
    assert stream.final.trace is stream.final.choices[0].trace


def test_asynchronously_a_link_is_loaded_first(running):
    async def ask():
        async with sdk.AsyncSaccade(running.url, "k") as client:
            answer = await client.chat("Hi", trace=KINDS | {"delivery": "link"}, max_tokens=4)
            with pytest.raises(sdk.InvalidInput, match="load_trace"):
                answer.trace["entropy"]
            await client.load_trace(answer.trace)
            assert answer.trace["entropy"].shape == (4,)
            inline = await client.chat("Hi", trace=KINDS, max_tokens=4)
            assert np.array_equal(inline.trace["entropy"], answer.trace["entropy"])
            async with client.stream_chat("Hi", trace=KINDS, max_tokens=4) as stream:
                async for _ in stream:
                    pass
            assert stream.final.trace["entropy"].shape == (4,)

    asyncio.run(ask())


def test_only_what_a_link_is_named_for_is_taken(client):
    trace = client.chat("Hi", trace=KINDS | {"delivery": "link"}, max_tokens=4).trace
    with pytest.raises(sdk.APIError, match="named for") as caught:
        trace.fill(b"something else")
    assert caught.value.code == "invalid_response"
    elsewhere = trace.model_copy(update={"link": "http://elsewhere/v1/traces/" + "0" * 64})
    elsewhere.attach(client._fetch_trace, [])
    with pytest.raises(sdk.InvalidInput, match="64 hexadecimal"):
        elsewhere["entropy"]


def test_numbers_that_are_none():
    values = np.asarray([1.5, np.nan], np.float32)
    trace = made(entropy=(values, ("row",)))
    trace.arrays["entropy"].data[1] = None
    assert np.array_equal(trace["entropy"].values, values, equal_nan=True)
    assert trace.html()


def test_choosing_and_averaging():
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    array = made(masses=(values, ("row", "layer", "head")))["masses"]
    assert np.array_equal(array.at(layer=11).values, values[:, 1])
    assert np.array_equal(array.at({"head": 13}, row=10).values, values[0, :, 3])
    mean = array.mean("row", "head")
    assert mean.axes == ("layer",)
    assert mean.coordinates == {"layer": (10, 11, 12)}
    assert np.allclose(mean, values.mean((0, 2)))
    assert array.at(row=10, layer=10, head=10).shape == ()
    for wrong in ({"layer": 13}, {"class": "image"}):
        with pytest.raises(sdk.InvalidInput):
            array.at(wrong)
    with pytest.raises(sdk.InvalidInput):
        array.mean("key")


def pixels(data):
    """Of a PNG whose rows have no filter."""
    width, height = struct.unpack(">II", data[16:24])
    start = data.index(b"IDAT") + 4
    raw = zlib.decompress(data[start:-12])
    rows = np.frombuffer(raw, np.uint8).reshape(height, 1 + 4 * width)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 4)


def test_pictures_are_png():
    given = np.random.default_rng(0).integers(0, 256, (3, 5, 4), np.uint8)
    data = png(given)
    assert np.array_equal(pixels(data), given)
    assert np.array_equal(np.asarray(Image.open(BytesIO(data))), given)


def test_a_heat_map_lies_where_its_view_does():
    grid = np.zeros((2, 1, 2, 3), np.float32)
    grid[:, :, 1, 2], grid[:, :, 0, 0] = 0.5, 0.25
    trace = made(**{"heatmaps.0": (grid, ("row", "layer", "height", "width"))})
    shown = trace.html([PICTURE])
    svg = ElementTree.fromstring(re.search(r"<svg.*?</svg>", shown)[0])
    image, heat = svg.findall("image")
    assert svg.get("viewBox") == "0 0 30 20"
    assert image.get("href") == PICTURE
    place = [float(heat.get(name)) for name in ("x", "y", "width", "height")]
    assert place == [0, -10, 30, 40]  # half of the grid's height is padding
    found = pixels(base64.b64decode(heat.get("href").partition(",")[2]))
    assert found[..., 3].tolist() == [[115, 0, 0], [0, 0, 230]]
    assert shown.count("<svg") == 3  # the mean, and both rows
    assert shown.count(PICTURE) == 1
    name = image.get("id")
    assert shown.count(f'<use href="#{name}"/>') == 2
    assert ">token 0<" in shown
    assert name not in trace.html([PICTURE])
    assert "<use" not in trace.html()


def test_html_shows_all_and_needs_nothing(client):
    masses = np.full((2, 3, 2), 0.5, np.float32)
    trace = made(
        masses=(masses, ("row", "layer", "class")),
        entropy=(np.asarray([0.5, 2], np.float32), ("row",)),
        **{"<b>&": (np.zeros(2, np.float32), ("key",))},
    )
    trace.arrays["masses"].coordinates["class"] = ["image", "<i>"]
    shown = trace._repr_html_()
    assert shown.count("<rect") == 6
    assert "layer 12" in shown
    assert "polyline" in shown
    assert "&lt;b&gt;&amp;" in shown
    assert "&lt;i&gt;" in shown
    for banned in ("<b>", "<i>", "<script", "http", "onload", "url("):
        assert banned not in shown
    seen = client.chat("What?", images=IMAGE, trace=KINDS, max_tokens=3)
    assert "polyline" in seen.trace._repr_html_()
    assert seen.trace._pictures == [PICTURE]


def test_only_pictures_of_the_request_are_shown():
    url = {"type": "image_url", "image_url": {"url": "http://elsewhere/x.png"}}
    short = {"type": "image_url", "image_url": PICTURE}
    body = {"messages": [{"content": "x"}, {"content": [url, {"type": "text"}, short]}]}
    assert traces.pictures_of(body) == ["", PICTURE]
    assert traces.pictures_of(None) == []


def test_without_numpy_it_says_what_to_install(client, monkeypatch: pytest.MonkeyPatch):
    trace = client.chat("Hi", trace=KINDS, max_tokens=2).trace
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(ImportError, match=r"saccade-client\[images\]"):
        trace["entropy"]
