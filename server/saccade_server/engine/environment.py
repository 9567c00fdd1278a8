"""What of the environment an engine's process gets: all but secrets that it does not need."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

SECRET = re.compile(
    r"((^|_)(pat|auth)|key|token|secret|password|passwd|passphrase|credential)s?(_|$)",
    re.IGNORECASE,
)
OF_THE_SERVER = "SACCADE_"
"""Options of the command line, keys among them; the engine has its configuration."""
OF_SPANS = "OTEL_"
"""Where spans go, which the API's process makes; headers with keys of collectors among them."""
OF_THE_HUB = ("HF_", "HUGGING_FACE_", "HUGGINGFACE_")


def engine_environment(model: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables to start an engine with.

    Names that speak of keys, tokens, secrets and passwords stay behind, whosever they are. A model
    that is not a folder may have to be fetched from the hub, which takes the hub's own token.
    """
    fetches = not Path(model).is_dir()
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith((OF_THE_SERVER, OF_SPANS))
        and (not SECRET.search(name) or (fetches and name.startswith(OF_THE_HUB)))
    }
