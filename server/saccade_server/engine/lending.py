"""Send each distinct image of the open requests once, however many requests have it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec.structs import replace

from saccade_server.engine.client import CapacityError
from saccade_server.engine.messages import Command, Lend, Reclaim
from saccade_server.engine.request import EMPTY, Array, GenerateRequest, ImageInput


def with_pixels(request: GenerateRequest, pixels: Callable[[ImageInput], Array]) -> GenerateRequest:
    """The request with other pixels in all its images."""

    def refill(images: tuple[ImageInput, ...]) -> tuple[ImageInput, ...]:
        return tuple(replace(image, pixels=pixels(image)) for image in images)

    branches = tuple(replace(branch, images=refill(branch.images)) for branch in request.branches)
    return replace(request, images=refill(request.images), branches=branches)


class PixelLender:
    """Counts the open requests of each image; pixels travel with the first and are kept till the
    last has ended.
    """

    def __init__(self, send: Callable[[Command], None]) -> None:
        self._send = send
        self._open: dict[str, int] = {}
        self._sizes: dict[str, int] = {}

    def lend(self, request: GenerateRequest, capacity: int) -> GenerateRequest:
        """Send what the engine does not have yet. Returns the request without pixels.

        Raises:
            CapacityError: the images of all open requests would exceed ``capacity`` bytes.
        """
        images = request.all_images
        fresh = {i.digest: i for i in images if i.digest not in self._open}
        size = sum(len(image.pixels.data) for image in fresh.values())
        if size and size + sum(self._sizes.values()) > capacity:
            raise CapacityError("too many image bytes are in flight")
        for digest, image in fresh.items():
            self._sizes[digest] = len(image.pixels.data)
            self._send(Lend(digest, image.pixels))
        for image in images:
            self._open[image.digest] = self._open.get(image.digest, 0) + 1
        return with_pixels(request, lambda _: EMPTY)

    def reclaim(self, images: Iterable[ImageInput], alive: bool) -> None:
        """A request with these images has ended; nothing is sent to an engine that is dead."""
        for image in images:
            self._open[image.digest] -= 1
            if self._open[image.digest] == 0:
                del self._open[image.digest], self._sizes[image.digest]
                if alive:
                    self._send(Reclaim(image.digest))
