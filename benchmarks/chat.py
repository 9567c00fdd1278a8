"""The request every benchmark sends: one image, one question, greedy."""

from __future__ import annotations

import base64
import io
from typing import Any

from saccade_server.config import DEMO_NAME


def body(picture: Any, question: str, interventions: list[Any], **more: Any) -> dict[str, Any]:
    """A chat completion's JSON body; ``picture`` is a PIL image."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return {
        "model": DEMO_NAME,
        "messages": [{"role": "user", "content": parts}],
        "temperature": 0,
        "interventions": interventions,
        **more,
    }
