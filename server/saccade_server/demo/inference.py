"""Batched greedy answers through plain transformers, for evaluation, samples and tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

BATCH = 50
"""Questions at a time."""


class Answerer:
    """Asks the model one question per image, in float32."""

    def __init__(self, folder: Path) -> None:
        self._processor: Any = AutoProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]
        # from_pretrained leaves the model in evaluation mode.
        self._model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)

    def answer(self, image: Image.Image, question: str) -> str:
        """The answer to one question."""
        return next(self.answers([(image, question)]))

    def answers(self, questions: Sequence[tuple[Image.Image, str]]) -> Iterator[str]:
        """The answers, in order."""
        for start in range(0, len(questions), BATCH):
            chunk = questions[start : start + BATCH]
            yield from self._generate(
                [image for image, _ in chunk], [question for _, question in chunk]
            )

    def _generate(self, images: list[Image.Image], questions: list[str]) -> list[str]:
        prompts = [
            self._processor.apply_chat_template(_messages(q), add_generation_prompt=True)
            for q in questions
        ]
        inputs = self._processor(images=images, text=prompts, padding=True, return_tensors="pt")
        with torch.inference_mode():
            generated = self._model.generate(**inputs)
        new_tokens = generated[:, inputs["input_ids"].shape[1] :]
        texts: list[str] = self._processor.batch_decode(new_tokens, skip_special_tokens=True)
        return texts


def _messages(question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
