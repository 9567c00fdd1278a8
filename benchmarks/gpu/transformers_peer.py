"""transformers' own loop, plain and with a patched VAR: what users of the methods run today.

The patch is what papers publish: the eager attention matrix of each layer is edited in place, and
sinks are found once, from hidden states, while the prompt runs. It is vectorised over heads and
sequences, and takes batches; the published code does neither.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface, DynamicCache, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from gpu.peers import redistribute
from gpu.problems import TEXT_SINK, VISUAL, VISUAL_SINK, image_tags
from gpu.serving import SINK_DIMS
from saccade_kernels.sinks import sink_scores

NAME = "patched_var"
THRESHOLD = 20.0


class PatchedVar:
    """VAR in transformers: an attention function and a hook before each layer."""

    def __init__(self, model: Any, prompt: int) -> None:
        self._layers = len(model.get_decoder().layers)
        self._tags = torch.from_numpy(image_tags(prompt)).to(model.device)
        self._question = int((self._tags == VISUAL).nonzero().max()) + 1
        self._sinks: dict[int, torch.Tensor] = {}
        self._dims = torch.tensor(SINK_DIMS, device=model.device)
        self._prompt = prompt
        self._handles = [
            layer.register_forward_pre_hook(self._hook(index), with_kwargs=True)
            for index, layer in enumerate(model.get_decoder().layers)
        ]
        AttentionInterface.register(NAME, self.attention)
        AttentionMaskInterface.register(NAME, eager_mask)

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, layer: int) -> Callable[[Any, Any, Any], None]:
        def look(module: Any, args: Any, kwargs: Any) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            if hidden.shape[1] == self._prompt and 2 <= layer < self._layers - 1:
                scores = sink_scores(hidden.flatten(0, 1), self._dims).view(hidden.shape[:2])
                self._sinks[layer] = scores >= THRESHOLD

        return look

    def attention(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float,
        dropout: float = 0.0,
        **unused: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """transformers' eager attention with the edit behind its softmax."""
        group = query.shape[1] // key.shape[1]
        if group > 1:
            key, value = (t.repeat_interleave(group, 1) for t in (key, value))
        weights = query @ key.transpose(2, 3) * scaling
        if attention_mask is not None:
            weights = weights + attention_mask[..., : key.shape[2]]
        weights = weights.softmax(-1, dtype=torch.float32).to(query.dtype)
        if 2 <= module.layer_idx < self._layers - 1:
            rows = weights if weights.shape[2] == 1 else weights[:, :, self._question :]
            rows.copy_(redistribute(rows, *self._sets(module.layer_idx, key), 0.4, 1e-6, 0.5))
        return (weights @ value).transpose(1, 2).contiguous(), weights

    def _sets(self, layer: int, key: torch.Tensor) -> list[torch.Tensor]:
        """Visual, visual sink and text sink keys of a layer, bool [batch, 1, 1, keys]."""
        found, tags = self._sinks[layer], self._tags
        image = (tags == VISUAL) | (tags == VISUAL_SINK)
        sunk = found & image | (tags == VISUAL_SINK)
        sets = (image & ~sunk, sunk, found & ~image | (tags == TEXT_SINK))
        later = key.shape[2] - self._prompt  # generated keys are in none
        return [torch.nn.functional.pad(keys, (0, later))[:, None, None] for keys in sets]


@torch.inference_mode()
def generate(model: Any, prompts: torch.Tensor, count: int) -> torch.Tensor:
    """Greedy, as ``model.generate`` does it without its checks: int64 [batch, count]."""
    cache = DynamicCache(config=model.config.get_text_config())
    tokens, found = prompts, []
    for _ in range(count):
        out = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        tokens = out.logits[:, -1].argmax(-1, keepdim=True)
        found.append(tokens)
    return torch.cat(found, 1)


def generate_together(model: Any, prompts: list[list[int]], count: int) -> None:
    """Greedy, by transformers' continuous batching, whose manager stays for the next call.

    Raises:
        RuntimeError: a request did not get exactly ``count`` tokens.
    """
    config = GenerationConfig(
        max_new_tokens=count, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    sizes = ContinuousBatchingConfig(allow_block_sharing=False)
    if model.device.type == "cpu":  # where it finds no memory to take a share of
        sizes.num_blocks, sizes.max_batch_tokens = 32, 256
    found = model.generate_batch(
        prompts, config, continuous_batching_config=sizes, persistent_manager=True
    )
    lengths = [len(one.generated_tokens) for one in found.values()]
    if lengths != [count] * len(prompts):
        errors = {one.error for one in found.values()}
        raise RuntimeError(f"requests of {count} tokens got {lengths}: {errors}")


def stop_together(model: Any) -> None:
    """End the manager and free its cache."""
    model.destroy_cached_continuous_batching_manager()
