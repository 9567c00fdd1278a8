"""``saccade eval export-scenes``: labelled prompts of the demo world, to try calibration with.

Writes images and a JSONL file as :mod:`saccade_server.calibration.examples` reads it. ``exists``
asks whether a thing is there and ``companion`` whether a trigger's companion is; labels are the
right answers. ``describe`` labels whole captions. ``absence`` asks for the companion too and labels
``positive`` where it is absent: the direction from what the prior promises to what is seen. There
``answer`` is the right answer.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path

from saccade_server.demo.questions import Kind
from saccade_server.demo.splits import Example, Split, companion_examples, examples

FILE = "prompts.jsonl"


class Questions(StrEnum):
    """What is asked and how it is labelled."""

    EXISTS = "exists"
    COMPANION = "companion"
    DESCRIBE = "describe"
    ABSENCE = "absence"


def export_scenes(
    folder: Path, split: Split, questions: Questions, count: int, seed: int = 0
) -> Path:
    """Write ``count`` labelled prompts and their images; returns the path of the JSONL file.

    Raises:
        OSError: the folder cannot be written.
    """
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    with path.open("w", encoding="utf-8") as file:
        for index, example in enumerate(_examples(split, questions, count, seed)):
            name = f"{split.value}-{seed}-{questions.value}-{index}.png"
            example.image.save(images / name)
            line = {
                "prompt": example.question,
                "image": f"images/{name}",
                "label": _label(example, questions),
            }
            if questions is Questions.ABSENCE:
                line["answer"] = example.answer
            file.write(json.dumps(line) + "\n")
    return path


def _examples(split: Split, questions: Questions, count: int, seed: int) -> list[Example]:
    match questions:
        case Questions.EXISTS:
            return list(examples(split, Kind.EXISTS, count, seed=seed))
        case Questions.DESCRIBE:
            return list(examples(split, Kind.DESCRIBE, count, seed=seed))
        case Questions.COMPANION | Questions.ABSENCE:
            return list(companion_examples(split, count, seed=seed))


def _label(example: Example, questions: Questions) -> str:
    if questions is Questions.ABSENCE:
        return "negative" if example.answer == "Yes." else "positive"
    return example.answer
