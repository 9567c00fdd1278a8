"""Where images are opened, decoded and preprocessed: threads and a budget of their own.

A small file may hold tens of millions of pixels, so images never share a queue with text. Headers
are read in one thread, which is quick; then a request takes the pixels of all its images from one
budget, or is refused at once. It has one image at a time in the threads that decode, so requests
take turns, and so do keys. Large images wait for a thread of their own: however many there are,
photographs pass them, and only one picture of that size is unpacked in memory.

The budget bounds how long the queue is, and what of several images is kept until the last of them
is ready: what the model takes, which for one that cuts images into tiles may be a million times
the picture. Memory beside that is bounded by the threads: while it is decoded, a large picture
needs 4 bytes a pixel, a WebP 8 or more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import TypeVar

from saccade_server.api.access.keys import caller
from saccade_server.api.errors import BadRequest, Unavailable
from saccade_server.api.fair_threads import FairThreads
from saccade_server.api.images.media import ImageBudget, OpenedImage
from saccade_server.api.settings import ApiSettings
from saccade_server.models.conversation import PromptError
from saccade_server.models.images import LARGE_PIXELS
from saccade_server.models.prompt import PromptProcessor
from saccade_server.models.views import Pixels

Result = TypeVar("Result")

CHANNELS = 3

RETRY_SECONDS = 2
"""After so long a client that found the budget taken may try again."""


class PixelBudget:
    """Pixels that may wait or be decoded at once, over all requests."""

    def __init__(self, most: int) -> None:
        self.taken = 0
        self._most = most
        self._lock = Lock()

    def take(self, pixels: int, held: int = 0) -> None:
        """Take ``pixels`` out of the budget, for a request that has ``held`` of them already.

        Raises:
            BadRequest: together they are more than there will ever be.
            Unavailable: they are more than there are now.
        """
        if pixels + held > self._most:
            message = (
                f"The images have, or become, {pixels + held} pixels together, more than the "
                f"{self._most} that this server prepares at once; send fewer or smaller ones."
            )
            raise BadRequest(message, code="image_too_large", param="messages")
        with self._lock:
            if self.taken + pixels <= self._most:
                self.taken += pixels
                return
        message = "The server is decoding as many images as it may at once; try again soon."
        raise Unavailable(message, retry_after=RETRY_SECONDS)

    def give(self, pixels: int) -> None:
        """Put them back."""
        with self._lock:
            self.taken -= pixels


class ImageWorkers:
    """Turns the images of requests into what the model takes."""

    def __init__(self, settings: ApiSettings, prompts: PromptProcessor) -> None:
        self.budget = PixelBudget(settings.max_pixels_in_flight)
        self._settings = settings
        self._prompts = prompts
        self._headers = FairThreads(1, "saccade-image-header")
        self._threads = FairThreads(settings.image_workers, "saccade-image")
        self._large = FairThreads(1, "saccade-large-image")

    async def prepare(self, sources: Mapping[str, str | bytes]) -> dict[str, Pixels]:
        """Decode and preprocess the images of one request: data URLs or files, by their places.

        When the caller is cancelled, work that has not begun is never done; work that has begun
        goes on, and keeps its pixels until it ends.

        Raises:
            BadRequest: one of them cannot be used.
            Unavailable: other requests have taken the budget.
        """
        limits = ImageBudget(self._settings)
        owner = caller.get().name
        opened = [
            await _result(self._headers.submit(owner, partial(limits.open, source, path)))
            for path, source in sources.items()
        ]
        made: dict[str, Pixels] = {}
        with self._taken(limits.pixels) as share:
            while opened:
                image = opened.pop(0)
                threads = self._large if image.pixels > LARGE_PIXELS else self._threads
                work = partial(self._pixels, image)
                pixels = await _result(share.run(threads, owner, work))
                share.grow(_size(pixels) - image.pixels)
                made[image.param] = pixels
        return made

    def close(self) -> None:
        """End the threads once they are idle."""
        for threads in (self._headers, self._threads, self._large):
            threads.shutdown()

    def _pixels(self, image: OpenedImage) -> Pixels:
        factor = self._prompts.reduction(image.width, image.height)
        try:
            picture, size = image.decode(factor)
            return self._prompts.prepare_image(picture)._replace(size=size)
        except PromptError as error:
            message = f"{str(error)[0].upper()}{str(error)[1:]}."
            raise BadRequest(message, code="invalid_image", param=image.param) from None

    @contextmanager
    def _taken(self, pixels: int) -> Iterator[_Share]:
        """Hold ``pixels`` of the budget until the last piece of work that was begun has ended."""
        share = _Share(self.budget, pixels)
        try:
            yield share
        finally:
            share.end()


class _Share:
    """What one request has of the budget."""

    def __init__(self, budget: PixelBudget, pixels: int) -> None:
        budget.take(pixels)
        self._budget = budget
        self._held = pixels
        self._last: Future[Pixels] | None = None

    def run(self, threads: FairThreads, owner: str, work: Callable[[], Pixels]) -> Future[Pixels]:
        """Begin a piece of work."""
        self._last = threads.submit(owner, work)
        return self._last

    def grow(self, pixels: int) -> None:
        """Take more of it, if that is anything."""
        if pixels > 0:
            self._budget.take(pixels, self._held)
            self._held += pixels

    def end(self) -> None:
        """Give all of it back once no work is left."""
        if self._last is None:
            self._budget.give(self._held)
        else:
            self._last.add_done_callback(lambda _: self._budget.give(self._held))


def _size(pixels: Pixels) -> int:
    """How many pixels an image's views have."""
    return sum(view.pixels.size for view in pixels.views) // CHANNELS


async def _result(future: Future[Result]) -> Result:
    """Wait for a thread; cancelled, take the work from the queue if it has not begun."""
    return await asyncio.wrap_future(future)
