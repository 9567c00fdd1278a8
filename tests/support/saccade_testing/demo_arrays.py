"""The demo model's own numbers of one answer, by transformers: what traces of it should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from saccade_server.demo import model_path

Floats = NDArray[np.float64]


@cache
def _loaded() -> tuple[Any, Any]:
    folder = model_path()
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    )
    return processor, model


@dataclass(frozen=True)
class Answered:
    """An image and a question with a given answer, in one pass of float64.

    Row t of the answer is the one that its token t is drawn from.
    """

    image: Path
    question: str
    answer: str
    system: str | None = None

    @cached_property
    def tokens(self) -> list[int]:
        """Of the whole, without a token that ends it."""
        processor, _ = _loaded()
        text: list[int] = processor.tokenizer(self.answer, add_special_tokens=False).input_ids
        return [*self._inputs["input_ids"][0].tolist(), *text]

    @property
    def prompt(self) -> int:
        """Tokens of the prompt."""
        return int(self._inputs["input_ids"].shape[1])

    @property
    def rows(self) -> slice:
        """Of the answer."""
        return slice(self.prompt - 1, len(self.tokens) - 1)

    @property
    def image_span(self) -> tuple[int, int]:
        """Positions of the image's tokens."""
        token = _loaded()[1].config.image_token_id
        at = [position for position, found in enumerate(self.tokens) if found == token]
        return at[0], at[-1] + 1

    def position(self, word: str) -> int:
        """Where a word of the template begins, which is tokens of its own there."""
        processor, _ = _loaded()
        texts = [processor.tokenizer.decode([token]) for token in self.tokens]
        at = [p for p in range(len(texts)) if "".join(texts[p:]).startswith(word)]
        return at[0]

    @cached_property
    def attention(self) -> Floats:
        """[layer, head, row, key] of all rows."""
        return np.stack([layer[0].numpy() for layer in self._run(True)[0].attentions])

    def logprobs(self, images: bool) -> Floats:
        """Of the next token at the answer's rows, [row, vocabulary], with images or without."""
        logits = self._run(images)[0].logits[0].log_softmax(-1).numpy()
        found: Floats = logits[self.rows] if images else logits[-len(self.answered) - 1 : -1]
        return found

    def heads(self, images: bool) -> Floats:
        """Outputs of heads at the answer's rows, before their projection, [row, layer, head, d]."""
        outputs = np.stack([layer.numpy() for layer in self._run(images)[1]], 1)
        found = outputs[self.rows] if images else outputs[-len(self.answered) - 1 : -1]
        heads = _loaded()[1].config.text_config.num_attention_heads
        return found.reshape(*found.shape[:2], heads, -1)

    @property
    def answered(self) -> list[int]:
        """Tokens of the answer."""
        return self.tokens[self.prompt :]

    @cached_property
    def _inputs(self) -> Any:
        processor, _ = _loaded()
        content = [{"type": "image"}, {"type": "text", "text": self.question}]
        chat: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if self.system is not None:
            chat.insert(0, {"role": "system", "content": self.system})
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        with Image.open(self.image) as image:
            return processor(images=[image.convert("RGB")], text=[text], return_tensors="pt")

    @cached_property
    def _runs(self) -> dict[bool, tuple[Any, list[torch.Tensor]]]:
        return {}

    @torch.no_grad()
    def _run(self, images: bool) -> tuple[Any, list[torch.Tensor]]:
        if images not in self._runs:
            self._runs[images] = self._forward(images)
        return self._runs[images]

    def _forward(self, images: bool) -> tuple[Any, list[torch.Tensor]]:
        _, model = _loaded()
        token = model.config.image_token_id
        kept: Sequence[int] = [t for t in self.tokens if images or t != token]
        more = {"pixel_values": self._inputs["pixel_values"].double()} if images else {}
        outputs: list[torch.Tensor] = []
        hooks = [
            layer.self_attn.o_proj.register_forward_pre_hook(
                lambda _, args: outputs.append(args[0][0].clone())
            )
            for layer in model.model.language_model.layers
        ]
        try:
            return model(input_ids=torch.tensor([kept]), output_attentions=True, **more), outputs
        finally:
            for hook in hooks:
                hook.remove()
