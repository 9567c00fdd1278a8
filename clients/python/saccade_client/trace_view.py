"""A trace as HTML for notebooks: SVG with pictures in it, no script, nothing from elsewhere."""

from __future__ import annotations

import base64
import struct
import uuid
import zlib
from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from saccade_client.arrays import TraceArray, numpy
from saccade_client.traces import Trace, View, names_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDTH = 240
"""Pixels that a heat map is wide; those of single rows are a third."""
MOST_ROWS = 12
"""Heat maps of single rows that are shown."""
SMALL = "display:inline-block;margin-right:6px"
HEAT = (230, 0, 122)
"""A colour that pictures seldom have."""
COLOURS = {
    "image": "#d9541e",
    "sinks": "#7a5ba8",
    "question": "#2a78b8",
    "recent": "#2f9468",
    "rest": "#8a8f98",
}
BAR, GAP = 14, 4
LABEL = 64


def page(trace: Trace, pictures: Sequence[str]) -> str:
    """Heat maps over the images, masses by layer, entropy by row, and what arrays there are."""
    with numpy().errstate(all="ignore"):  # what is no number is shown as none
        parts = [
            *_heatmaps(trace, pictures),
            *(_masses(trace[name]) for name in names_of(trace, "masses")),
            *(_line(trace[name]) for name in names_of(trace, "entropy")),
            _table(trace),
        ]
    return f'<div style="font:13px system-ui,sans-serif">{"".join(parts)}</div>'


def _heatmaps(trace: Trace, pictures: Sequence[str]) -> Iterator[str]:
    for name in names_of(trace, "heatmaps"):
        if name.endswith(".sinks"):
            continue
        number, _, at = name.removeprefix("heatmaps.").partition(".")
        view = trace.images[int(number)][int(at or 0)]
        picture = _Picture(view, pictures[int(number)] if int(number) < len(pictures) else "")
        array = trace[name]
        yield _title(f"{name}: {array.unit}, mean over everything but the grid")
        yield f"<div>{picture.under(_grid(array), WIDTH)}</div>"
        if "row" in array.axes and 1 < array.shape[0] <= MOST_ROWS:
            for row in array.coordinates["row"]:
                token = row - trace.prompt_tokens + 1
                said = f"row {row}" if token < 0 else f"token {token}"
                shown = picture.under(_grid(array.at(row=row)), WIDTH // 3)
                yield f'<div style="{SMALL}">{shown}<br><small>{said}</small></div>'


def _grid(array: TraceArray) -> NDArray[Any]:
    """[height, width]: the mean over all other axes."""
    others = [axis for axis in array.axes if axis not in ("height", "width")]
    return (array.mean(*others) if others else array).values


class _Picture:
    """An image under heat maps; however many there are, it is written once."""

    def __init__(self, view: View, url: str) -> None:
        self._view = view
        self._url = url
        self._name = f"saccade-{uuid.uuid4().hex}"
        self._written = False

    def under(self, grid: NDArray[Any], width: int) -> str:
        """A heat map where it lies on the image."""
        rows, columns = grid.shape
        wide, high = self._view.size if all(self._view.size) else (columns, rows)
        left, top, right, bottom = (
            share * side for share, side in zip(self._view.box, (wide, high) * 2, strict=True)
        )
        place = f'x="{left:g}" y="{top:g}" width="{right - left:g}" height="{bottom - top:g}"'
        heat = base64.b64encode(_heat(grid)).decode()
        said = f"largest {_number(float(grid.max(initial=0)))}"
        return (
            f'<svg viewBox="0 0 {wide} {high}" width="{width}" role="img" '
            'style="margin:2px;background:#fff;outline:1px solid #8884">'
            f"<title>{said}</title>{self._image(wide, high)}"
            f'<image href="data:image/png;base64,{heat}" {place} preserveAspectRatio="none" '
            'style="image-rendering:pixelated"/></svg>'
        )

    def _image(self, wide: int, high: int) -> str:
        if not self._url:
            return ""
        if self._written:
            return f'<use href="#{self._name}"/>'
        self._written = True
        size = f'width="{wide}" height="{high}" opacity="0.6"'
        return f'<image id="{self._name}" href="{escape(self._url)}" {size}/>'


def _heat(grid: NDArray[Any]) -> bytes:
    """A PNG of one colour, the more opaque the larger the number."""
    np = numpy()
    largest = float(np.nanmax(grid, initial=0.0))
    share = np.nan_to_num(grid / largest) if largest > 0 else np.zeros(grid.shape)
    pixels = np.empty((*grid.shape, 4), np.uint8)
    pixels[..., :3] = HEAT
    pixels[..., 3] = np.rint(230 * np.clip(share, 0, 1))
    return png(pixels)


def png(pixels: NDArray[Any]) -> bytes:
    """Return uint8 pixels [height, width, 4] as a PNG file."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", head),
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        )
    )


def _masses(array: TraceArray) -> str:
    """A bar for each layer, divided by classes; the mean over all else."""
    others = [axis for axis in array.axes if axis not in ("layer", "class")]
    mean = array.mean(*others) if others else array
    classes = [str(name) for name in mean.coordinates["class"]]
    layers = mean.coordinates.get("layer", ("all",))
    values = mean.values.reshape(len(layers), len(classes))
    bars = []
    for at, (layer, row) in enumerate(zip(layers, values, strict=True)):
        y, x = at * (BAR + GAP), float(LABEL)
        bars.append(_text(LABEL - 8, y + BAR - 3, f"layer {layer}", "end"))
        for name, share in zip(classes, row.tolist(), strict=True):
            wide = share * 2 * WIDTH
            colour = COLOURS.get(name, "#444")
            said = escape(f"{name} {100 * share:.1f} %")
            bars.append(
                f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{BAR}" fill="{colour}">'
                f"<title>{said}</title></rect>"
            )
            x += wide
    legend = " ".join(
        f'<span style="color:{COLOURS.get(name, "#444")}">&#9632;</span> {escape(name)}'
        for name in classes
    )
    size = f'width="{LABEL + 2 * WIDTH}" height="{len(layers) * (BAR + GAP)}"'
    title = _title(f"{array.name}: {array.unit} by layer")
    return f'{title}<div>{legend}</div><svg {size} role="img">{"".join(bars)}</svg>'


def _line(array: TraceArray) -> str:
    """One number a row, as a line."""
    if array.axes != ("row",) or len(array.values) < 2:
        return ""
    values = [0.0 if value != value else float(value) for value in array.values.tolist()]
    largest = max(max(values), 1e-12)
    step = 2 * WIDTH / (len(values) - 1)
    points = " ".join(f"{at * step:.1f},{42 - 40 * v / largest:.1f}" for at, v in enumerate(values))
    title = _title(f"{array.name} by row: {array.unit}, at most {_number(largest)}")
    return (
        f'{title}<svg width="{2 * WIDTH}" height="44" role="img"><polyline points="{points}" '
        f'fill="none" stroke="{COLOURS["question"]}" stroke-width="1.5"/></svg>'
    )


def _table(trace: Trace) -> str:
    def row(name: str) -> str:
        facts = trace.arrays[name]
        sizes = " × ".join(f"{n} {axis}" for n, axis in zip(facts.shape, facts.axes, strict=True))
        cells = (name, sizes or "one number", facts.dtype, facts.unit)
        return "".join(f"<td>{escape(cell)}</td>" for cell in cells)

    rows = "".join(f"<tr>{row(name)}</tr>" for name in trace.arrays)
    return f"{_title(f'{len(trace)} arrays, {trace.bytes} bytes')}<table>{rows}</table>"


def _title(text: str) -> str:
    return f'<div style="margin-top:8px;font-weight:600">{escape(text)}</div>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    style = 'font-size="11" fill="currentColor"'
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" {style}>{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:.3g}"
