"""Training batches: one image, many questions, one sequence.

Every question about an image branches off the same prefix: beginning of text, user header, image.
The branches share the image tokens, see nothing of one another and count their positions from the
end of the prefix, so each is exactly the sequence the chat template would give, while the costly
image tokens are computed once for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaProcessor

from .build import BOS, EOS, IMAGE, IMAGE_TOKENS, PAD, PATCH_SIZE, SPECIAL_TOKENS, SYSTEM_PROMPTS
from .drawing import render
from .questions import Kind, Turn, ask
from .scenes import IMAGE_SIZE, THINGS, Evidence, Scene, sample_scene

IGNORED: Final = -100
BACKGROUND: Final = len(THINGS)
MIXED_PATCH: Final = IGNORED
ALWAYS_ASKED: Final = (Kind.DESCRIBE, *(Kind.EXISTS,) * 3)
TWO_ASKED: Final = (Kind.COUNT, Kind.WHERE, Kind.WHAT)
SYSTEM_RATE: Final = 0.2
FOLLOW_UP_RATE: Final = 0.08


@dataclass(frozen=True)
class Batch:
    """One step's input. `B` images, `T` tokens of the longest row, `P` image tokens."""

    pixel_values: Tensor  # [B, 3, height, width]
    input_ids: Tensor  # [B, T]
    position_ids: Tensor  # [B, T]
    attention_mask: Tensor  # [B, 1, T, T] bool, True where the row may attend
    labels: Tensor  # [B, T], the token that follows, or IGNORED
    patches: Tensor  # [B, P], index into THINGS, BACKGROUND, or MIXED_PATCH at outlines


@dataclass(frozen=True)
class Row:
    """One image's tokens; `branch` is 0 in the prefix and counts the branches from 1."""

    ids: list[int]
    positions: list[int]
    branches: list[int]
    labels: list[int]


class BatchMaker:
    """Makes the batch of any step and shard from the seed alone, so that runs can be resumed."""

    def __init__(
        self, processor: LlavaProcessor, *, seed: int, size: int, warm_up_steps: int
    ) -> None:
        self._tokenizer = processor.tokenizer
        self._seed = seed
        self._size = size
        self._warm_up_steps = warm_up_steps

    def make(self, step: int, shard: int) -> Batch:
        rng = Random(f"train-{self._seed}-{step}-{shard}")
        scenes = [self._sample(rng, step) for _ in range(self._size)]
        return self._collate([self._row(scene, rng) for scene in scenes], scenes)

    def _sample(self, rng: Random, step: int) -> Scene:
        """Few, clearly drawn things first: they break the loss plateau in little time."""
        if step < self._warm_up_steps:
            return sample_scene(rng, Evidence.CLEAR, most_things=2)
        return sample_scene(rng, rng.choice(tuple(Evidence)))

    def _row(self, scene: Scene, rng: Random) -> Row:
        system = f"{rng.choice(SYSTEM_PROMPTS)}\n" if rng.random() < SYSTEM_RATE else ""
        prefix = self._encode(f"{BOS}{system}USER:\n{IMAGE * IMAGE_TOKENS}\n")
        row = Row(prefix, list(range(len(prefix))), [0] * len(prefix), [IGNORED] * len(prefix))
        branches = [[ask(scene, kind, rng)] for kind in (*ALWAYS_ASKED, *rng.sample(TWO_ASKED, 2))]
        for turns in branches:
            if rng.random() < FOLLOW_UP_RATE:
                turns.append(ask(scene, rng.choice(tuple(Kind)), rng))
        for number, turns in enumerate(branches, start=1):
            self._append_branch(row, number, turns, len(prefix))
        return row

    def _append_branch(self, row: Row, number: int, turns: list[Turn], start: int) -> None:
        ids: list[int] = []
        labels: list[int] = []
        for index, turn in enumerate(turns):
            opening = "\nUSER:\n" if index else ""
            prompt = self._encode(f"{opening}{turn.question}\nASSISTANT:\n")
            answer = self._encode(f"{turn.answer}{EOS}")
            ids += prompt + answer
            # A label is the token that follows: the prompt's last position predicts the answer.
            labels += [IGNORED] * (len(prompt) - 1) + answer + [IGNORED]
        row.ids.extend(ids)
        row.positions.extend(range(start, start + len(ids)))
        row.branches.extend([number] * len(ids))
        row.labels.extend(labels)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _collate(self, rows: list[Row], scenes: list[Scene]) -> Batch:
        length = max(len(row.ids) for row in rows)
        # Padding is a branch of its own, -1, so that no row of the mask is empty.
        branches = _pad([row.branches for row in rows], length, -1)
        return Batch(
            pixel_values=pixels([render(scene) for scene in scenes]),
            input_ids=_pad([row.ids for row in rows], length, SPECIAL_TOKENS.index(PAD)),
            position_ids=_pad([row.positions for row in rows], length, 0),
            attention_mask=_branch_mask(branches),
            labels=_pad([row.labels for row in rows], length, IGNORED),
            patches=torch.tensor([patch_contents(scene) for scene in scenes]),
        )


def pixels(images: list[Image.Image]) -> Tensor:
    """What the processor makes of 64 x 64 images, but fast: [images, 3, height, width]."""
    stacked = np.stack([np.asarray(image, dtype=np.float32) for image in images])
    return torch.from_numpy(stacked / 127.5 - 1.0).permute(0, 3, 1, 2).contiguous()


def patch_contents(scene: Scene) -> list[int]:
    """What fills each patch, in raster order: a thing, BACKGROUND, or MIXED_PATCH at outlines."""
    side = IMAGE_SIZE // PATCH_SIZE
    contents = [BACKGROUND] * side**2
    for item in scene.items:
        for patch in range(side**2):
            row, column = divmod(patch, side)
            distance = np.hypot(
                (column + 0.5) * PATCH_SIZE - item.x, (row + 0.5) * PATCH_SIZE - item.y
            )
            if distance < 0.8 * item.radius:
                contents[patch] = THINGS.index(item.thing)
            elif distance < item.radius + 0.7 * PATCH_SIZE and contents[patch] == BACKGROUND:
                contents[patch] = MIXED_PATCH
    return contents


def _pad(rows: list[list[int]], length: int, value: int) -> Tensor:
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def _branch_mask(branches: Tensor) -> Tensor:
    """Causal within a branch, plus the prefix for every branch: [B, T] -> [B, 1, T, T]."""
    length = branches.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = branches[:, :, None] == branches[:, None, :]
    prefix = (branches[:, None, :] == 0) & (branches[:, :, None] >= 0)
    return ((same | prefix) & causal)[:, None]
