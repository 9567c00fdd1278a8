"""Copying from the context, and what is left of it without some heads.

An induction head looks for what followed the last time that the present token occurred, and
predicts it again (Olsson et al. 2022, arXiv 2209.11895). The heads are looked for where a list of
words is written twice, by what each head alone does to the next word, and tried on lists of other
words and on sequences of random tokens, which nothing but copying can predict.
"""

from __future__ import annotations

import asyncio
import json
import random
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from language.asked import Asked
from language.facts import TOKENS, facts
from language.paired import difference, mean, share
from saccade_server.calibration.sweep import Head

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE / "copying.jsonl"
"""Lists to calibrate with; drawn here (``python benchmarks/text_methods.py --parts prompts``)."""

CALIBRATION_LISTS = 8
CALIBRATION_SEED = 0
HELD_OUT = 48
HELD_OUT_SEED = 1
SYSTEM = "You copy lists."
"""Shorter than what the template says in its place."""

REQUEST = "Write a list of words twice."
WORDS = 8
RANDOM_TOKENS = 24
START = 0
"""<|endoftext|>, before random tokens: what stands first is looked at by most heads."""

LEAST_TOKEN = 100
"""Below are control tokens and single bytes."""


def lists(part: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Labelled conversations that stop where the second list is to go on.

    Args:
        part: whose words are drawn, ``calibration`` or ``held_out``.
    """
    words = tomllib.loads((HERE / "copying.toml").read_text())[part]
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        chosen = draw.sample(words, WORDS)
        at = draw.randrange(2, WORDS)
        said = " ".join([*chosen, *chosen[:at]])
        turns = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": REQUEST},
            {"role": "assistant", "content": said},
        ]
        found.append({"messages": turns, "label": chosen[at]})
    return found


def write_examples() -> None:
    drawn = lists("calibration", CALIBRATION_LISTS, CALIBRATION_SEED)
    EXAMPLES.write_text("".join(json.dumps(entry) + "\n" for entry in drawn))


def sequences(vocabulary: int) -> list[tuple[list[int], int]]:
    """Random tokens, and a beginning of them again; with the token that comes next."""
    draw = random.Random(HELD_OUT_SEED)
    found = []
    for _ in range(HELD_OUT):
        tokens = draw.sample(range(LEAST_TOKEN, vocabulary), RANDOM_TOKENS)
        at = draw.randrange(2, RANDOM_TOKENS)
        found.append(([START, *tokens, *tokens[:at]], tokens[at]))
    return found


def controls(chosen: Sequence[Head], heads: int, sets: int) -> list[list[Head]]:
    """As many other heads of the same layers, drawn at random; ``heads`` is a layer's number.

    Where a layer has too few others, all of them are taken.
    """
    draw = random.Random(HELD_OUT_SEED)
    found = []
    for _ in range(sets):
        drawn: list[Head] = []
        for layer in sorted({layer for layer, _ in chosen}):
            taken = [head for at, head in chosen if at == layer]
            others = [head for head in range(heads) if head not in taken]
            some = draw.sample(others, min(len(taken), len(others)))
            drawn += [(layer, head) for head in sorted(some)]
        found.append(drawn)
    return found


def ablation(heads: Sequence[Head]) -> list[dict[str, Any]]:
    """The interventions that set some heads to zero."""
    by_layer: dict[str, list[int]] = {}
    for layer, head in sorted(heads):
        by_layer.setdefault(str(layer), []).append(head)
    return [{"method": "head_ablation", "mode": "zero", "heads": by_layer}] if heads else []


async def measure(
    asked: Asked, vocabulary: int, settings: Mapping[str, Sequence[Head]]
) -> dict[str, Any]:
    """Copying and answers without each set of heads; ``plain`` has an empty one."""
    prompts = {"lists": await _rendered(asked), "random_tokens": sequences(vocabulary)}
    asks = facts()
    found: dict[str, Any] = {}
    values: dict[str, dict[str, list[float]]] = {}
    for name, heads in settings.items():
        entries = ablation(heads)
        values[name] = {}
        for kind, asking in prompts.items():
            copied = await asyncio.gather(*(asked.next_token(*one, entries) for one in asking))
            values[name] |= {
                f"{kind}_right": [float(right) for _, right in copied],
                f"{kind}_logprob": [log for log, _ in copied],
            }
        texts = await asyncio.gather(*(asked.answer(ask.question, entries, TOKENS) for ask in asks))
        values[name]["facts_right"] = [
            float(ask.is_right(said)) for ask, said in zip(asks, texts, strict=True)
        ]
        found[name] = {
            "heads": [list(head) for head in sorted(heads)],
            **{key: _figure(of, values["plain"][key], key) for key, of in values[name].items()},
            "answers": texts,
        }
    return {"questions": [ask.question for ask in asks], "settings": found}


async def _rendered(asked: Asked) -> list[tuple[list[int], int]]:
    """The held-out lists as tokens, with the first token of the word that comes next."""
    found = []
    for entry in lists("held_out", HELD_OUT, HELD_OUT_SEED):
        prompt = await asked.tokens(messages=entry["messages"], continue_final_message=True)
        label = await asked.tokens(prompt=f" {entry['label']}", add_special_tokens=False)
        found.append((prompt, label[0]))
    return found


def _figure(values: Sequence[float], plain: Sequence[float], key: str) -> dict[str, Any]:
    counts = key.endswith("_right")
    whole = share([value > 0 for value in values]) if counts else mean(values)
    return {"mean": whole.as_json(), "change": difference(values, plain).as_json()}
