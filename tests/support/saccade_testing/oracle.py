"""transformers' own forward with an edit of attention written out, and what an engine said of it.

Everything is recomputed for every token, in float64, with dense attention; nothing of it is shared
with the engine, which chunks, caches, batches and reads float32 tables.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface

from saccade_server.engine.request import FinishReason
from saccade_testing.engine import Result
from saccade_testing.tiny import TinyPrompt

Said = list[tuple[int, float]]
"""(token, log-probability) of each step."""
Weigh = Callable[[int, torch.Tensor], torch.Tensor]
"""``weigh(layer, scores) -> weights``; both [heads, rows, keys], scores of hidden keys -inf."""
Edit = Callable[[int, torch.Tensor, dict[int, torch.Tensor]], torch.Tensor]
"""``edit(layer, scores, residuals) -> weights``; residuals [rows, hidden size] enter layers."""


def attend(model: Any, weigh: Weigh, behind: Weigh | None = None) -> None:
    """Make the text decoder attend as ``weigh`` says.

    Args:
        behind: ``behind(layer, output) -> output`` changes heads' outputs [heads, rows, head dim].
    """

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
        layer = int(module.layer_idx)
        output = weigh(layer, scores.masked_fill(hidden, -torch.inf)) @ v
        if behind is not None:
            output = behind(layer, output)
        return output.transpose(0, 1)[None], None

    AttentionInterface.register("oracle", attention)
    seeing = hasattr(model.config, "vision_config")
    model.set_attn_implementation({"text_config": "oracle"} if seeing else "oracle")


def remember_residuals(model: Any) -> dict[int, torch.Tensor]:
    """What will have entered each layer in the latest forward, by layer, [rows, hidden size]."""
    residuals: dict[int, torch.Tensor] = {}

    def remember(index: int) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            residuals[index] = (args[0] if args else kwargs["hidden_states"])[0]

        return hook

    for index, layer in enumerate(model.get_decoder().layers):
        layer.register_forward_pre_hook(remember(index), with_kwargs=True)
    return residuals


def logits(model: Any, prompt: TinyPrompt, tokens: list[int]) -> torch.Tensor:
    """Of the last token, [vocabulary]; ``tokens`` begin with those of the prompt."""
    ids = torch.tensor([tokens])
    found: torch.Tensor = model(input_ids=ids, use_cache=False, **prompt.arguments(ids)).logits
    return found[0, -1]


@torch.no_grad()
def greedy(step: Callable[[list[int]], torch.Tensor], tokens: list[int], steps: int) -> Said:
    """Tokens that ``step(tokens so far) -> logits`` makes likeliest, one after the other."""
    tokens, found = list(tokens), []
    for _ in range(steps):
        logprobs = step(tokens).log_softmax(-1)
        token = int(logprobs.argmax())
        found.append((token, float(logprobs[token])))
        tokens.append(token)
    return found


class Oracle:
    """Greedy generation by full recomputation, attention edited as ``edit`` says."""

    def __init__(self, model: Any, edit: Edit) -> None:
        self.model = model
        residuals = remember_residuals(model)
        attend(model, lambda layer, scores: edit(layer, scores, residuals))

    def run(self, prompt: TinyPrompt, steps: int) -> Said:
        return greedy(lambda tokens: logits(self.model, prompt, tokens), list(prompt.tokens), steps)


def check(result: Result, wanted: Said, atol: float = 2e-6) -> None:
    """An answer is the oracle's, up to the token that ended it."""
    assert result.last is not None
    assert result.last.error is None
    if result.last.finish_reason is FinishReason.STOP:
        wanted = wanted[: len(result.tokens)]
    assert result.tokens == [token for token, _ in wanted]
    found = np.array([entry.logprob for entry in result.logprobs])
    np.testing.assert_allclose(found, [value for _, value in wanted], atol=atol)


def visual(prompt: TinyPrompt, keys: int) -> torch.Tensor:
    """Which keys are features of an image, bool [keys]."""
    flags = torch.zeros(keys, dtype=torch.bool)
    for image in prompt.images:
        flags[image.start : image.start + image.length] = True
    return flags
