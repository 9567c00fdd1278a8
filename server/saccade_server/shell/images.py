"""``--image``: what is no image, or no longer one, is refused before a model loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from saccade_server.shell.entries import Refused


def check_images(paths: Sequence[Path]) -> None:
    """Open every image as a server with default limits does.

    Raises:
        Refused: one cannot be read; names the file and says what helps.
    """
    if not paths:
        return
    from saccade_server.api.errors import ApiError
    from saccade_server.api.images.media import ImageBudget
    from saccade_server.api.settings import ApiSettings

    budget = ImageBudget(ApiSettings(served_model_name=""))
    for path in paths:
        try:
            budget.open(path.read_bytes(), "").decode()
        except OSError as error:
            raise Refused(f"--image {path}: cannot be read ({error.strerror}); check it") from None
        except ApiError as error:
            said = error.message.removeprefix("The image ").rstrip(".")
            raise Refused(f"--image {path}: {said.replace('; send', '; give')}") from None
