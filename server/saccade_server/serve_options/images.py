"""What images of requests may take, and whether they are fetched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from saccade_server.serve_options.group import OptionGroup, listed


@dataclass(frozen=True)
class ImageOptions(OptionGroup):
    """Fetching, threads, pixels."""

    allow_image_urls: Annotated[
        bool,
        typer.Option(help="Fetch images from http(s) URLs.", envvar="SACCADE_ALLOW_IMAGE_URLS"),
    ] = False
    allowed_media_domain: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="With --allow-image-urls, fetch only from this host. Repeat for several. "
            "SACCADE_ALLOWED_MEDIA_DOMAIN holds one, or several with commas between.",
        ),
    ] = None
    image_workers: Annotated[
        int,
        typer.Option(
            min=1,
            help="Threads that decode images; those over 16 megapixels have one more.",
            envvar="SACCADE_IMAGE_WORKERS",
        ),
    ] = 2
    max_pixels_in_flight: Annotated[
        int,
        typer.Option(
            min=1,
            help="Pixels that the images of all requests may have together while they wait and are "
            "decoded, as they are or as the model is shown them, whichever is more; beyond it "
            "requests with images get a 503.",
            envvar="SACCADE_MAX_PIXELS_IN_FLIGHT",
        ),
    ] = 200_000_000

    def settings(self) -> dict[str, Any]:
        """All of them, the names of hosts checked."""
        from saccade_server.api.images.fetch import check_domains

        domains = listed(self.allowed_media_domain, "SACCADE_ALLOWED_MEDIA_DOMAIN")
        return {
            "allow_image_urls": self.allow_image_urls,
            "allowed_media_domains": check_domains(domains),
            "image_workers": self.image_workers,
            "max_pixels_in_flight": self.max_pixels_in_flight,
        }
