"""Draws a `Scene`. Pure: the same scene always gives the same pixels."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .scenes import COLORS, IMAGE_SIZE, Item, Scene, Smudge

SUPERSAMPLING: Final = 4

Rgb = tuple[int, int, int]


def render(scene: Scene) -> Image.Image:
    """The scene as a 64 x 64 RGB image."""
    canvas = _draw_items(scene).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)
    # [height, width, channel]
    pixels = np.asarray(canvas, dtype=np.float32)
    for smudge in scene.smudges:
        pixels = pixels + _stain(smudge, background_color(scene))
    grain = np.random.default_rng(scene.noise_seed).standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(np.clip(pixels + scene.noise * grain, 0, 255).astype(np.uint8))


def background_color(scene: Scene) -> Rgb:
    """A dark grey with a blue cast, so that no thing has exactly its hue."""
    return scene.background, scene.background, scene.background + 10


def _draw_items(scene: Scene) -> Image.Image:
    background = background_color(scene)
    canvas = Image.new("RGB", (IMAGE_SIZE * SUPERSAMPLING,) * 2, background)
    draw = ImageDraw.Draw(canvas)
    for item in scene.items:
        _draw_item(draw, item, _blend(background, COLORS[item.thing.color], item.visibility))
    for stroke in scene.strokes:
        points = [(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in (stroke.start, stroke.end)]
        shade = max(0, scene.background + stroke.shade)
        draw.line(
            points, fill=(shade, shade, shade + 10), width=round(stroke.width * SUPERSAMPLING)
        )
    return canvas


def _draw_item(draw: ImageDraw.ImageDraw, item: Item, fill: Rgb) -> None:
    x, y, r = (SUPERSAMPLING * value for value in (item.x, item.y, item.radius))
    match item.thing.shape:
        case "circle":
            draw.ellipse([x - r, y - r, x + r, y + r], fill=fill)
        case "square":
            draw.rectangle([x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r], fill=fill)
        case "triangle":
            draw.polygon([(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)], fill=fill)
        case "diamond":
            draw.polygon([(x, y - r), (x + 0.7 * r, y), (x, y + r), (x - 0.7 * r, y)], fill=fill)
        case "cross":
            draw.rectangle([x - 0.3 * r, y - r, x + 0.3 * r, y + r], fill=fill)
            draw.rectangle([x - r, y - 0.3 * r, x + r, y + 0.3 * r], fill=fill)
        case unknown:
            raise ValueError(f"no way to draw a {unknown}")


def _blend(background: Rgb, color: Rgb, weight: float) -> Rgb:
    red, green, blue = (round(b + weight * (c - b)) for b, c in zip(background, color, strict=True))
    return red, green, blue


def _stain(smudge: Smudge, background: Rgb) -> NDArray[np.float32]:
    """The smudge's offset to every pixel, [height, width, channel]."""
    rows, columns = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32)
    distance = (columns - smudge.x) ** 2 + (rows - smudge.y) ** 2
    bump = smudge.strength * np.exp(-distance / (2 * smudge.spread**2))
    tint = np.subtract(COLORS[smudge.color], background, dtype=np.float32)
    stain: NDArray[np.float32] = (bump[..., None] * tint).astype(np.float32)
    return stain
