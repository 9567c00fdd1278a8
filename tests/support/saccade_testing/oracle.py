"""Greedy generation by transformers with an edit of attention written out.

The oracle recomputes the whole sequence for every token, in float64, with dense attention; nothing
of it is shared with the engine, which chunks, caches, batches and reads float32 tables.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface

Edit = Callable[[int, torch.Tensor, dict[int, torch.Tensor]], torch.Tensor]
"""``edit(layer, scores, residuals) -> weights``; scores [heads, rows, keys], hidden keys -inf."""


class Oracle:
    """A transformers model whose text decoder attends as ``edit`` says."""

    def __init__(self, model: Any, edit: Edit) -> None:
        self.model = model
        residuals: dict[int, torch.Tensor] = {}

        def remember(index: int) -> Callable[..., None]:
            def hook(module: Any, args: Any, kwargs: Any) -> None:
                residuals[index] = (args[0] if args else kwargs["hidden_states"])[0]

            return hook

        for index, layer in enumerate(model.get_decoder().layers):
            layer.register_forward_pre_hook(remember(index), with_kwargs=True)

        def attention(
            module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, **kw: Any
        ) -> tuple[torch.Tensor, None]:
            group = q.shape[1] // k.shape[1]
            k, v = k[0].repeat_interleave(group, 0), v[0].repeat_interleave(group, 0)
            scores = q[0] @ k.transpose(1, 2) * kw["scaling"]
            rows, keys = torch.arange(scores.shape[1])[:, None], torch.arange(scores.shape[2])
            hidden = keys > rows
            if kw.get("sliding_window"):
                hidden |= keys <= rows - kw["sliding_window"]
            weights = edit(module.layer_idx, scores.masked_fill(hidden, -torch.inf), residuals)
            return (weights @ v).transpose(0, 1)[None], None

        AttentionInterface.register("oracle", attention)
        kind = "oracle" if not hasattr(model.config, "vision_config") else {"text_config": "oracle"}
        model.set_attn_implementation(kind)

    @torch.no_grad()
    def run(self, prompt: Any, steps: int) -> list[tuple[int, float]]:
        """(token, log-probability) of each greedy step."""
        tokens, found = list(prompt.tokens), []
        for _ in range(steps):
            logprobs = self._logits(prompt, tokens).log_softmax(-1)
            token = int(logprobs.argmax())
            found.append((token, float(logprobs[token])))
            tokens.append(token)
        return found

    def _logits(self, prompt: Any, tokens: list[int]) -> torch.Tensor:
        ids = torch.tensor([tokens])
        inputs = {"input_ids": ids, "use_cache": False, **prompt.arguments(ids)}
        logits: torch.Tensor = self.model(**inputs).logits
        return logits[0, -1]


def visual(prompt: Any, keys: int) -> torch.Tensor:
    """Which keys are features of an image, bool [keys]."""
    flags = torch.zeros(keys, dtype=torch.bool)
    for image in prompt.images:
        flags[image.start : image.start + image.length] = True
    return flags
