"""How likely the plain model finds a text, and how much of the text repeats itself."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class Judge:
    """The same checkpoint in transformers, plain; nothing of the server."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    @torch.inference_mode()
    def logprob(self, question: str, answer: str) -> float:
        """Mean log p of the answer's tokens, in nats, in a chat that asks the question.

        Of an empty answer it is that of ending at once.
        """
        chat = [{"role": "user", "content": question}]
        prompt = self._tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=False
        )
        before = self._tokenizer(prompt, add_special_tokens=False).input_ids
        said = self._tokenizer(answer, add_special_tokens=False).input_ids
        said = said or [self._tokenizer.eos_token_id]
        logits = self._model(torch.tensor([before + said])).logits[0, len(before) - 1 : -1]
        chosen = logits.log_softmax(-1).gather(-1, torch.tensor(said)[:, None])
        return float(chosen.mean())


def repetition(text: str) -> float:
    """Share of the runs of three words that have occurred before in the text."""
    words = text.lower().split()
    runs = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
