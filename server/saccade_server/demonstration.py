"""``saccade demo``: one held-out image, plain and under methods, with what each does beyond it."""

from __future__ import annotations

import asyncio
from typing import Any

from saccade_server.config import DEMO_NAME
from saccade_server.demo import SHOWN_SAMPLE, sample_path
from saccade_server.demo.effects import document as measured
from saccade_server.demo.story import Story
from saccade_server.engine.config import EngineConfig
from saccade_server.inprocess import open_server
from saccade_server.oneshot import ask, text_of

GREEDY = {"temperature": 0.0}


async def demonstrate(config: EngineConfig) -> dict[str, Any]:
    """Ask the demo model, in one batch, under every setting whose effect was measured.

    Returns:
        ``question``, ``image`` (a path) and ``reference``; ``answers``, each with the setting's
        name, its interventions, the text, whether it is right, what it names that is absent or
        misses that is there, and the receipt; ``measured``, the benchmark's figures for the same
        settings.

    Raises:
        RequestRefused: a request was not answered.
    """
    story, image, shipped = Story.of(SHOWN_SAMPLE), sample_path(SHOWN_SAMPLE), measured()
    settings = {name: setting["interventions"] for name, setting in shipped["settings"].items()}
    async with open_server(config, DEMO_NAME) as client:
        asked = [
            ask(client, DEMO_NAME, story.question, [image], interventions, GREEDY)
            for interventions in settings.values()
        ]
        answers = await asyncio.gather(*asked)
    return {
        "question": story.question,
        "image": str(image),
        "reference": story.reference,
        "answers": [
            {"name": name, "interventions": settings[name], **_judged(story, answer)}
            for name, answer in zip(settings, answers, strict=True)
        ],
        "measured": shipped,
    }


def _judged(story: Story, answer: dict[str, Any]) -> dict[str, Any]:
    verdict = story.judge(text_of(answer))
    return {
        "text": text_of(answer),
        "right": verdict.right,
        "absent": [str(thing) for thing in verdict.absent],
        "missed": [str(thing) for thing in verdict.missed],
        "verdict": str(verdict),
        "interventions_applied": answer.get("interventions_applied", []),
    }
