"""Writes the sample images with their story: python -m saccade_server.demo.samples

Each sample is a scene of a held-out split, chosen by its index after looking at what the trained
model says about it. What it says is recorded, not claimed. SHOWN_SAMPLE follows a rule instead; a
test looks for its scene again.
"""

from __future__ import annotations

import json
from typing import Any, Final

from . import SAMPLES, SAMPLES_PATH, SHOWN_SAMPLE, model_path, sample_path
from .drawing import render
from .inference import Answerer
from .questions import DESCRIBE, caption
from .scenes import PLACES, Item
from .splits import Split, sample_split

QUESTION: Final = DESCRIBE[0]
RULE: Final = (
    "The first scene of its split whose plain caption names a missing companion, whose caption "
    "under vcd at its defaults is the reference, and both with every token ahead of the next by "
    "at least one nat, so that no rounding changes them."
)
LOOKED_AT: Final = "Chosen after looking at what the model says."
CHOSEN: Final[dict[str, tuple[Split, int]]] = {
    "clear-1": (Split.CLEAR, 3),
    "clear-2": (Split.CLEAR, 21),
    "clear-3": (Split.CLEAR, 37),
    "weak-1": (Split.ORDINARY, 7),
    "absent-1": (Split.COUNTERFACTUAL, 1),
    "absent-2": (Split.COUNTERFACTUAL, 46),
    "absent-3": (Split.COUNTERFACTUAL, 2),
    "absent-4": (Split.COUNTERFACTUAL, 3),
}


def record(answerer: Answerer, name: str) -> dict[str, Any]:
    """Draw one sample and tell its story."""
    split, index = CHOSEN[name]
    scene = sample_split(split, index + 1)[index]
    image = render(scene)
    image.save(sample_path(name), optimize=True)
    return {
        "name": name,
        "split": split.value,
        "index": index,
        "chosen": RULE if name == SHOWN_SAMPLE else LOOKED_AT,
        "things": [_described(item) for item in scene.items],
        "missing_companions": [str(thing) for thing in scene.missing_companions],
        "question": QUESTION,
        "reference": caption(scene),
        "plain_answer": answerer.answer(image, QUESTION),
    }


def _described(item: Item) -> dict[str, str]:
    return {"color": item.thing.color, "shape": item.thing.shape, "place": PLACES[item.cell]}


def main() -> None:
    SAMPLES_PATH.mkdir(exist_ok=True)
    answerer = Answerer(model_path())
    records = [record(answerer, name) for name in SAMPLES]
    text = json.dumps(records, indent=2) + "\n"
    (SAMPLES_PATH / "samples.json").write_text(text, encoding="utf-8")
    for entry in records:
        print(f"{entry['name']}: {entry['reference']}\n    plain: {entry['plain_answer']}")


if __name__ == "__main__":
    main()
