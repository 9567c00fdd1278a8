"""One answer without a server: ``saccade generate`` and what ``saccade demo`` asks."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saccade_server.engine.config import EngineConfig
from saccade_server.inprocess import open_server


class RequestRefused(Exception):
    """The server's error object: ``message``, and the path ``param`` into the request's JSON."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


async def generate(
    config: EngineConfig,
    name: str,
    prompt: str,
    images: Sequence[Path],
    interventions: Sequence[dict[str, Any]],
    sampling: Mapping[str, Any],
    artifacts: Path | None = None,
) -> dict[str, Any]:
    """Answer one chat message; ``artifacts`` is a folder of what interventions may name.

    Returns:
        The chat completion object, with its receipt.

    Raises:
        RequestRefused: the request is not valid; nothing was generated.
    """
    async with open_server(config, name, artifacts=artifacts) as client:
        return await ask(client, name, prompt, images, interventions, sampling)


async def ask(
    client: Any,
    name: str,
    prompt: str,
    images: Sequence[Path],
    interventions: Sequence[dict[str, Any]],
    sampling: Mapping[str, Any],
) -> dict[str, Any]:
    """Ask a server one chat message, images first; returns and raises as :func:`generate`."""
    content = [_image_part(path) for path in images] + [{"type": "text", "text": prompt}]
    response = await client.post(
        "/v1/chat/completions",
        json={
            "model": name,
            "messages": [{"role": "user", "content": content}],
            "interventions": list(interventions),
            **sampling,
        },
    )
    answer: dict[str, Any] = response.json()
    if response.status_code != 200:
        error = answer["error"]
        raise RequestRefused(error["message"], error.get("param"))
    return answer


def text_of(answer: Mapping[str, Any]) -> str:
    """The first choice's text, "" if it has none."""
    text: str | None = answer["choices"][0]["message"]["content"]
    return text or ""


def reasoning_of(answer: Mapping[str, Any]) -> str:
    """What the first choice thought before, "" if nothing."""
    text: str = answer["choices"][0]["message"].get("reasoning_content", "")
    return text


def _image_part(path: Path) -> dict[str, Any]:
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    data = base64.b64encode(path.read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}
