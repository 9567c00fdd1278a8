"""What is asked: captions and yes/no questions about the demo world's held-out scenes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from saccade_server.demo.questions import Kind
from saccade_server.demo.splits import Example, Split, companion_examples, examples
from saccade_server.evaluation.images import data_url

TESTED = (Split.CLEAR, Split.ORDINARY, Split.COUNTERFACTUAL)
"""The splits that are reported; strengths are chosen on Split.VALIDATION alone."""


class Task(StrEnum):
    """What an answer is."""

    CAPTION = "caption"
    YES_NO = "yes/no"


@dataclass(frozen=True)
class Item:
    """One question about one image: number ``index`` of its kind, split and seed.

    ``name`` tells it from every other one, in any run.
    """

    name: str
    task: Task
    example: Example
    image_url: str
    seed: int
    index: int


def scene_items(splits: Sequence[Split], scenes: int, seeds: Sequence[int]) -> list[Item]:
    """Everything asked about ``scenes`` scenes of each split and seed.

    Each scene is described once. The yes/no questions are, for each scene, whether some thing is
    there (half of the time it is; mostly a near miss otherwise) and, for as many scenes with a
    trigger, whether the companion is there that usually comes with it.
    """
    return [item for split in splits for seed in seeds for item in _of_split(split, scenes, seed)]


def caption_items(split: Split, scenes: int, seed: int = 0) -> list[Item]:
    """The descriptions alone."""
    described = examples(split, Kind.DESCRIBE, scenes, seed=seed)
    return list(_named(described, Task.CAPTION, f"{split.value}/{seed}/describe", seed))


def _of_split(split: Split, scenes: int, seed: int) -> Iterator[Item]:
    yield from caption_items(split, scenes, seed)
    exists = examples(split, Kind.EXISTS, scenes, seed=seed)
    yield from _named(exists, Task.YES_NO, f"{split.value}/{seed}/exists", seed)
    companions = companion_examples(split, scenes, seed=seed)
    yield from _named(companions, Task.YES_NO, f"{split.value}/{seed}/companion", seed)


def _named(asked: Iterable[Example], task: Task, prefix: str, seed: int) -> Iterator[Item]:
    for index, example in enumerate(asked):
        yield Item(f"{prefix}/{index}", task, example, data_url(example.image), seed, index)
