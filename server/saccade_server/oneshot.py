"""``saccade generate`` and ``saccade demo``: answers on the terminal, without a server."""

from __future__ import annotations

import base64
import json
import mimetypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from saccade_server.config import DEMO_NAME
from saccade_server.demo import sample_path
from saccade_server.engine.config import EngineConfig
from saccade_server.inprocess import open_server

DEMO_SAMPLE = "absent-1"
DEMO_PROMPT = "Describe the image."


class RequestRefused(Exception):
    """The server's error object, as text."""


async def generate(
    config: EngineConfig,
    name: str,
    prompt: str,
    images: Sequence[Path],
    interventions: Sequence[dict[str, Any]],
    sampling: dict[str, Any],
    artifacts: Path | None = None,
) -> dict[str, Any]:
    """Answer one chat message; ``artifacts`` is a folder of what interventions may name.

    Returns:
        The chat completion object, with its receipt.

    Raises:
        RequestRefused: the request is not valid; nothing was generated.
    """
    async with open_server(config, name, artifacts=artifacts) as client:
        return await _ask(client, name, prompt, images, interventions, sampling)


async def demo(config: EngineConfig, console: Console) -> None:
    """Ask the demo model about a sample image without and with VAR, and show both."""
    image = sample_path(DEMO_SAMPLE)
    answers = []
    async with open_server(config, DEMO_NAME) as client:
        for interventions in ([], [{"method": "var"}]):
            answer = await _ask(
                client, DEMO_NAME, DEMO_PROMPT, [image], interventions, {"temperature": 0.0}
            )
            answers.append(answer)
    console.print(f"{DEMO_PROMPT}  [dim]{image}[/dim]")
    console.print(side_by_side(answers))


def side_by_side(answers: Sequence[dict[str, Any]]) -> Table:
    """Two answers and their receipts, as a table."""
    table = Table(show_lines=True)
    table.add_column("")
    table.add_column("plain", ratio=1, overflow="fold")
    table.add_column("with var", ratio=1, overflow="fold")
    table.add_row("answer", *(text_of(answer) for answer in answers))
    table.add_row("receipt", *(_lines(answer) for answer in answers))
    return table


def text_of(answer: dict[str, Any]) -> str:
    """The first choice's text."""
    text: str = answer["choices"][0]["message"]["content"]
    return text


def receipt_of(answer: dict[str, Any]) -> str:
    """``interventions_applied``, one JSON object a line."""
    return "\n".join(json.dumps(entry) for entry in answer.get("interventions_applied", []))


def _lines(answer: dict[str, Any]) -> str:
    entries = answer.get("interventions_applied", [])
    lines = [f"{name}: {json.dumps(value)}" for entry in entries for name, value in entry.items()]
    return "\n".join(lines) or "no interventions"


async def _ask(
    client: Any,
    name: str,
    prompt: str,
    images: Sequence[Path],
    interventions: Sequence[dict[str, Any]],
    sampling: dict[str, Any],
) -> dict[str, Any]:
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
        where = f" ({error['param']})" if error.get("param") else ""
        raise RequestRefused(f"{error['message']}{where}")
    return answer


def _image_part(path: Path) -> dict[str, Any]:
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    data = base64.b64encode(path.read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}
