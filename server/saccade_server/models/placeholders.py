"""From a prompt with one placeholder for each image to one with a token for each feature."""

from __future__ import annotations

from collections.abc import Sequence

from saccade_server.models.conversation import PromptError
from saccade_server.models.encoding import Encoded, TextEncoder
from saccade_server.models.rendered import PreparedImage, RenderedPrompt
from saccade_server.models.views import Pixels


def expanded(
    encoder: TextEncoder,
    image_token: int | None,
    text: str,
    encoded: Encoded,
    images: Sequence[Pixels],
) -> RenderedPrompt:
    """A prompt in which each image's placeholder is repeated, once for each of its features.

    Raises:
        PromptError: it is empty, or placeholders and images differ.
    """
    places = encoded.ids.count(image_token) if image_token is not None else 0
    if places != len(images):
        raise PromptError(f"the prompt has {places} image placeholders and {len(images)} images")
    if not encoded.ids:
        raise PromptError("the prompt is empty")
    tokens: list[int] = []
    offsets: list[tuple[int, int]] = []
    views: list[PreparedImage] = []
    shown = iter(enumerate(images))
    for token, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
        length = len(tokens)
        if token == image_token:
            _show(encoder, *next(shown), token, tokens, views)
        else:
            tokens.append(token)
        offsets += [(start, end), *[(end, end)] * (len(tokens) - length - 1)]
    return RenderedPrompt(tuple(tokens), text, tuple(offsets), tuple(views))


def _show(
    encoder: TextEncoder,
    number: int,
    image: Pixels,
    token: int,
    tokens: list[int],
    views: list[PreparedImage],
) -> None:
    """Append what stands for one placeholder: the image's views, and what names them."""
    for view in image.views:
        before, behind = (encoder.inside(text).ids for text in (view.before, view.behind))
        views.append(
            PreparedImage(
                digest=view.digest(),
                start=len(tokens) + len(before),
                length=view.features,
                pixels=view.pixels,
                grid=view.grid,
                copies=view.copies,
                cells=view.cells,
                before=len(before),
                behind=len(behind),
                image=number,
                size=image.size,
            )
        )
        tokens += [*before, *[token] * view.features, *behind]
