"""Training batches: one image, many questions, one sequence.

Every question about an image branches off the same prefix: beginning of text, user header, image.
The branches share the image tokens, see nothing of one another and count their positions from the
end of the prefix, so each is exactly the sequence the chat template would give, while the costly
image tokens are computed once for all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaProcessor

from .build import (
    BOS,
    EOS,
    IMAGE,
    IMAGE_TOKENS,
    PAD,
    PATCH_SIZE,
    SPECIAL_TOKENS,
    SYSTEM_PROMPTS,
    VOCABULARY_SIZE,
)
from .drawing import render
from .pointing import Pointers
from .questions import Kind, Turn, ask
from .scenes import (
    CELL_SIZE,
    COLORS,
    GRID,
    IMAGE_SIZE,
    PLACES,
    SHAPES,
    THINGS,
    Evidence,
    Item,
    Scene,
    sample_crowd,
    sample_scene,
)

IGNORED: Final = -100
BACKGROUND: Final = len(THINGS)
MIXED_PATCH: Final = BACKGROUND + 1
NO_SUBJECT: Final = -1
# Shapes take the vision tower many examples to learn; images without questions are cheap.
CROWDS: Final = 10
# Patches of things are few and their shapes are hard; background is plentiful and easy.
THING_WEIGHT: Final = 5
ALWAYS_ASKED: Final = (Kind.DESCRIBE, *(Kind.EXISTS,) * 3)
TWO_ASKED: Final = (Kind.COUNT, Kind.WHERE, Kind.WHAT)
SYSTEM_RATE: Final = 0.2
FOLLOW_UP_RATE: Final = 0.08


@dataclass(frozen=True)
class Batch:
    """One step's input: `V` images, `B` rows of at most `T` tokens, `P` image tokens an image."""

    pixel_values: Tensor  # [V, 3, height, width]; the first B images are asked about
    input_ids: Tensor  # [B, T]
    position_ids: Tensor  # [B, T]
    attention_mask: Tensor  # [B, 1, T, T] bool, True where the row may attend
    labels: Tensor  # [B, T], the token that follows, or IGNORED
    pointers: Pointers  # which positions speak of which patches
    is_background: Tensor  # [V, P] bool, True for patches clear of all things
    patch_words: Tensor  # [V, P, vocabulary], weights of the words that name the patch's content


@dataclass(frozen=True)
class Row:
    """One image's tokens; `branch` is 0 in the prefix and counts the branches from 1."""

    ids: list[int]
    positions: list[int]
    branches: list[int]
    labels: list[int]
    subjects: list[int]  # index into the scene's items, or NO_SUBJECT


class BatchMaker:
    """Makes the batch of any step and shard from the seed alone, so that runs can be resumed."""

    def __init__(
        self, processor: LlavaProcessor, *, seed: int, size: int, lone_steps: int, clear_steps: int
    ) -> None:
        self._tokenizer = processor.tokenizer
        self._places = torch.tensor([patch_place(patch) for patch in range(IMAGE_TOKENS)])
        self._vocabulary = self._name_patches()
        self._colors = {self._encode(f" {color}")[0] for color in COLORS}
        self._shapes = {self._encode(f" {shape}")[0] for shape in SHAPES}
        self._seed = seed
        self._size = size
        self._lone_steps = lone_steps
        self._clear_steps = clear_steps

    def make(self, step: int, shard: int) -> Batch:
        rng = Random(f"train-{self._seed}-{step}-{shard}")
        scenes = [self._sample(rng, step) for _ in range(self._size)]
        rows = [self._row(scene, rng) for scene in scenes]
        crowds = [
            sample_crowd(rng, rng.choice(tuple(Evidence))) for _ in range(self._size * CROWDS)
        ]
        return self._collate(rows, scenes + crowds)

    def _sample(self, rng: Random, step: int) -> Scene:
        """Lone things first, then few, then everything: this breaks the loss plateau early.

        With one thing in the image its mean already answers every question, so the model learns to
        read; with two it must learn where to look.
        """
        if step < self._lone_steps:
            return sample_scene(rng, Evidence.CLEAR, most_things=1, companion_rate=0.0)
        if step < self._clear_steps:
            return sample_scene(rng, Evidence.CLEAR, most_things=2)
        return sample_scene(rng, rng.choice(tuple(Evidence)))

    def _row(self, scene: Scene, rng: Random) -> Row:
        system = f"{rng.choice(SYSTEM_PROMPTS)}\n" if rng.random() < SYSTEM_RATE else ""
        prefix = self._encode(f"{BOS}{system}USER:\n{IMAGE * IMAGE_TOKENS}\n")
        row = Row([], [], [], [], [])
        _extend(row, prefix, 0, 0, [IGNORED] * len(prefix), [NO_SUBJECT] * len(prefix))
        branches = [[ask(scene, kind, rng)] for kind in (*ALWAYS_ASKED, *rng.sample(TWO_ASKED, 2))]
        for turns in branches:
            if rng.random() < FOLLOW_UP_RATE:
                turns.append(ask(scene, rng.choice(tuple(Kind)), rng))
        for number, turns in enumerate(branches, start=1):
            self._append_branch(row, number, turns, scene, len(prefix))
        return row

    def _append_branch(
        self, row: Row, number: int, turns: list[Turn], scene: Scene, start: int
    ) -> None:
        ids: list[int] = []
        labels: list[int] = []
        subjects: list[int] = []
        for index, turn in enumerate(turns):
            opening = "\nUSER:\n" if index else ""
            prompt = self._encode(f"{opening}{turn.question}\nASSISTANT:\n")
            answer = self._encode(f"{turn.answer}{EOS}")
            ids += prompt + answer
            # A label is the token that follows: the prompt's last position predicts the answer.
            labels += [IGNORED] * (len(prompt) - 1) + answer + [IGNORED]
            subjects += self._subjects(turn, scene, prompt, answer)
        _extend(row, ids, number, start, labels, subjects)

    def _subjects(
        self, turn: Turn, scene: Scene, prompt: list[int], answer: list[int]
    ) -> list[int]:
        """For every position of one turn, the item it should look at to predict what follows."""
        spoken_of = [scene.items.index(item) for item in turn.subjects]
        if turn.kind is not Kind.DESCRIBE:
            subject = spoken_of[0] if spoken_of else NO_SUBJECT
            # From the question's mark to the answer's: by then it is known what is asked for.
            header = len(self._encode("?\nASSISTANT:\n"))
            asked = [NO_SUBJECT] * (len(prompt) - header) + [subject] * header
            return asked + [subject] * (len(answer) - 2) + [NO_SUBJECT] * 2
        subjects = [NO_SUBJECT] * (len(prompt) - 1)
        upcoming = iter(spoken_of)
        current = NO_SUBJECT
        for token in answer:
            current = next(upcoming) if token in self._colors else current
            names_thing = token in self._colors or token in self._shapes
            subjects.append(current if names_thing else NO_SUBJECT)
        return [*subjects, NO_SUBJECT]

    def _name_patches(self) -> Tensor:
        """The words for each place and content, [places, contents, vocabulary]; mixed: none."""
        named = torch.zeros(len(PLACES), len(THINGS) + 2, VOCABULARY_SIZE)
        for place, words in enumerate(PLACES):
            for content in range(len(THINGS) + 1):
                thing = f" {THINGS[content]}" if content != BACKGROUND else ""
                ids = self._encode(f"{thing} {words}" if thing else f"Nothing {words}")
                weight = 1 if content == BACKGROUND else THING_WEIGHT
                named[place, content, ids] = weight / len(ids)
        return named

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _collate(self, rows: list[Row], scenes: list[Scene]) -> Batch:
        """The first scenes belong to the rows; the rest only train the vision tower."""
        length = max(len(row.ids) for row in rows)
        # Padding is a branch of its own, -1, so that no row of the mask is empty.
        branches = _pad([row.branches for row in rows], length, -1)
        contents = torch.tensor([patch_contents(scene) for scene in scenes])
        return Batch(
            pixel_values=pixels([render(scene) for scene in scenes]),
            input_ids=_pad([row.ids for row in rows], length, SPECIAL_TOKENS.index(PAD)),
            position_ids=_pad([row.positions for row in rows], length, 0),
            attention_mask=_branch_mask(branches),
            labels=_pad([row.labels for row in rows], length, IGNORED),
            pointers=_pointers(rows, scenes, length),
            is_background=contents == BACKGROUND,
            patch_words=self._vocabulary[self._places, contents],
        )


def pixels(images: list[Image.Image]) -> Tensor:
    """What the processor makes of 64 x 64 images, but fast: [images, 3, height, width]."""
    stacked = np.stack([np.asarray(image, dtype=np.float32) for image in images])
    return torch.from_numpy(stacked / 127.5 - 1.0).permute(0, 3, 1, 2).contiguous()


def patch_contents(scene: Scene) -> list[int]:
    """What fills each patch, in raster order: a thing, BACKGROUND, or MIXED_PATCH at outlines."""
    contents = [BACKGROUND] * IMAGE_TOKENS
    for item in scene.items:
        for patch in range(IMAGE_TOKENS):
            x, y = patch_center(patch)
            distance = math.hypot(x - item.x, y - item.y)
            if distance < item.radius + 1:
                contents[patch] = THINGS.index(item.thing)
            elif distance < item.radius + 0.7 * PATCH_SIZE and contents[patch] == BACKGROUND:
                contents[patch] = MIXED_PATCH
    return contents


def item_patches(item: Item) -> list[bool]:
    """Which patches the item touches."""
    centers = (patch_center(patch) for patch in range(IMAGE_TOKENS))
    return [math.hypot(x - item.x, y - item.y) < item.radius + 1 for x, y in centers]


def patch_center(patch: int) -> tuple[float, float]:
    """The middle of a patch, x and y in pixels."""
    row, column = divmod(patch, IMAGE_SIZE // PATCH_SIZE)
    return (column + 0.5) * PATCH_SIZE, (row + 0.5) * PATCH_SIZE


def patch_place(patch: int) -> int:
    """The index into PLACES of the grid cell which holds the middle of the patch."""
    x, y = patch_center(patch)
    return int(y / CELL_SIZE) * GRID + int(x / CELL_SIZE)


def _extend(
    row: Row, ids: list[int], branch: int, start: int, labels: list[int], subjects: list[int]
) -> None:
    row.ids.extend(ids)
    row.positions.extend(range(start, start + len(ids)))
    row.branches.extend([branch] * len(ids))
    row.labels.extend(labels)
    row.subjects.extend(subjects)


def _pointers(rows: list[Row], scenes: list[Scene], length: int) -> Pointers:
    """Every position which speaks of an item, with the item's patches."""
    found: list[tuple[int, int]] = []
    keys: list[list[bool]] = []
    for number, (row, scene) in enumerate(zip(rows, scenes, strict=False)):
        first_patch = row.ids.index(SPECIAL_TOKENS.index(IMAGE))
        before, after = [False] * first_patch, [False] * (length - first_patch - IMAGE_TOKENS)
        looks = [before + item_patches(item) + after for item in scene.items]
        for position, subject in enumerate(row.subjects):
            if subject != NO_SUBJECT:
                found.append((number, position))
                keys.append(looks[subject])
    return Pointers(torch.tensor(found), torch.tensor(keys))


def _pad(rows: list[list[int]], length: int, value: int) -> Tensor:
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def _branch_mask(branches: Tensor) -> Tensor:
    """Causal within a branch, plus the prefix for every branch: [B, T] -> [B, 1, T, T]."""
    length = branches.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = branches[:, :, None] == branches[:, None, :]
    prefix = (branches[:, None, :] == 0) & (branches[:, :, None] >= 0)
    return ((same | prefix) & causal)[:, None]
