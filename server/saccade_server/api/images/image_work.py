"""Where images are opened, decoded and preprocessed: threads and a budget of their own.

A small file may hold tens of millions of pixels, so images never share a queue with text. Headers
are read in one thread, which is quick; then a request takes the pixels of all its images from one
budget, or is refused at once. It has one image at a time in the threads that decode, so requests
take turns. Large images wait for a thread of their own: however many there are, photographs pass
them, and only one picture of that size is unpacked in memory.

The budget bounds how long the queue is; memory is bounded by the threads. While it is decoded, a
large picture needs 4 bytes a pixel, a WebP 8 or more; what is kept is what the model takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import TypeVar

from saccade_server.api.errors import BadRequest, Unavailable
from saccade_server.api.images.media import ImageBudget, OpenedImage
from saccade_server.api.settings import ApiSettings
from saccade_server.models.conversation import PromptError
from saccade_server.models.images import LARGE_PIXELS
from saccade_server.models.prompt import PromptProcessor
from saccade_server.models.views import Pixels

Result = TypeVar("Result")

RETRY_SECONDS = 2
"""After so long a client that found the budget taken may try again."""


class PixelBudget:
    """Pixels that may wait or be decoded at once, over all requests."""

    def __init__(self, most: int) -> None:
        self.taken = 0
        self._most = most
        self._lock = Lock()

    def take(self, pixels: int) -> None:
        """Take ``pixels`` out of the budget.

        Raises:
            BadRequest: they are more than there will ever be.
            Unavailable: they are more than there are now.
        """
        if pixels > self._most:
            message = (
                f"The images have {pixels} pixels together, more than the {self._most} that this "
                "server decodes at once; send them smaller."
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
        self._headers = ThreadPoolExecutor(1, "saccade-image-header")
        self._threads = ThreadPoolExecutor(settings.image_workers, "saccade-image")
        self._large = ThreadPoolExecutor(1, "saccade-large-image")

    async def prepare(self, sources: Mapping[str, str | bytes]) -> dict[str, Pixels]:
        """Decode and preprocess the images of one request: data URLs or files, by their places.

        When the caller is cancelled, work that has not begun is never done; work that has begun
        goes on, and keeps its pixels until it ends.

        Raises:
            BadRequest: one of them cannot be used.
            Unavailable: other requests have taken the budget.
        """
        limits = ImageBudget(self._settings)
        opened = [
            await _result(self._headers.submit(limits.open, source, path))
            for path, source in sources.items()
        ]
        made: dict[str, Pixels] = {}
        with self._taken(limits.pixels) as run:
            while opened:
                image = opened.pop(0)
                threads = self._large if image.pixels > LARGE_PIXELS else self._threads
                work = partial(self._pixels, image)
                made[image.param] = await _result(run(threads, work))
        return made

    def close(self) -> None:
        """End the threads once they are idle."""
        for threads in (self._headers, self._threads, self._large):
            threads.shutdown(wait=False, cancel_futures=True)

    def _pixels(self, image: OpenedImage) -> Pixels:
        factor = self._prompts.reduction(image.width, image.height)
        try:
            return self._prompts.prepare_image(image.decode(factor))
        except PromptError as error:
            message = f"{str(error)[0].upper()}{str(error)[1:]}."
            raise BadRequest(message, code="invalid_image", param=image.param) from None

    @contextmanager
    def _taken(
        self, pixels: int
    ) -> Iterator[Callable[[ThreadPoolExecutor, Callable[[], Pixels]], Future[Pixels]]]:
        """Hold ``pixels`` of the budget until the last piece of work that was begun has ended."""
        self.budget.take(pixels)
        last: Future[Pixels] | None = None

        def run(threads: ThreadPoolExecutor, work: Callable[[], Pixels]) -> Future[Pixels]:
            nonlocal last
            last = threads.submit(work)
            return last

        try:
            yield run
        finally:
            if last is None:
                self.budget.give(pixels)
            else:
                last.add_done_callback(lambda _: self.budget.give(pixels))


async def _result(future: Future[Result]) -> Result:
    """Wait for a thread; cancelled, take the work from the queue if it has not begun."""
    return await asyncio.wrap_future(future)
