"""The decoder is transformers' layers bit for bit, and what it does not describe is refused."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AttentionInterface,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3VLConfig,
)

from saccade_kernels import ops, reference
from saccade_server.models.attention import ForwardStep
from saccade_server.models.family import (
    SUPPORTED,
    ServedModel,
    UnsupportedModelError,
    check_config,
    serve,
)
from saccade_server.models.scratch import ScratchCache
from saccade_server.models.spec import Biases, DecoderSpec
from saccade_testing import tiny

# Rows of each sequence, step after step: alone and packed, decodes and chunks, windows full.
STEPS: list[list[tuple[int, int]]] = [
    [(0, 5)],
    [(0, 7), (1, 9)],
    [(0, 1)],
    [(1, 1), (0, 1), (2, 30)],
    [(2, 1), (0, 1), (1, 1)],
]


@pytest.fixture
def family(decoder_family: str) -> str:
    """Every family that has a decoder of its own."""
    return decoder_family


class Theirs:
    """transformers' layers, with the paged attention that the decoder has."""

    def __init__(self, model: Any) -> None:
        AttentionInterface.register("paged-oracle", self._attend)
        text_only = not hasattr(model.config, "vision_config")
        kind: Any = "paged-oracle" if text_only else {"text_config": "paged-oracle"}
        model.set_attn_implementation(kind)
        self._decoder = model.get_decoder()
        # Casting a model rounds its frequencies too; loading one in another dtype does not.
        self._decoder.rotary_emb = type(self._decoder.rotary_emb)(model.config.get_text_config())
        self._step: ForwardStep

    def forward(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        step: ForwardStep,
        visual: torch.Tensor | None = None,
        deepstack: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        self._step = step
        shown = {}
        if visual is not None:
            mask = torch.zeros(1, len(embeddings), dtype=torch.bool).index_fill(1, visual, True)
            shown = {"visual_pos_masks": mask, "deepstack_visual_embeds": list(deepstack)}
        places = positions if len(positions) == 1 else positions[:, None]
        output = self._decoder(
            inputs_embeds=embeddings[None], position_ids=places, use_cache=False, **shown
        )
        return output.last_hidden_state[0]

    def _attend(
        self, module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, **kw: Any
    ) -> tuple[torch.Tensor, None]:
        step, layer = self._step, module.layer_idx
        query, key, value = (part[0].transpose(0, 1) for part in (q, k, v))
        caches = (step.key_caches[layer], step.value_caches[layer])
        reference.store(key, value, *caches, step.batch.slots)
        scores = (kw["scaling"], kw.get("softcap") or 0.0, kw.get("sliding_window") or 0)
        return ops.attention(query, *caches, step.batch, layer, *scores)[None], None


class Run:
    """Something that computes :data:`STEPS` one after the other, on positions of three axes."""

    def __init__(self, forward: Callable[..., torch.Tensor], served: ServedModel) -> None:
        self.forward, self.served = forward, served
        self.cache = ScratchCache(served, 3, 128)

    @torch.inference_mode()
    def step(self, new: list[tuple[int, int]], *shown: Any) -> torch.Tensor:
        starts = [self.cache.lengths[sequence] for sequence, _ in new]
        table = torch.cat([torch.arange(s, s + n) for s, (_, n) in zip(starts, new, strict=True)])
        embeddings = self.served.embed(10 + table * 7 % 80)
        positions = torch.stack([table * (axis + 1) for axis in range(self.served.axes)])
        return self.forward(embeddings, positions, self.cache.step(new), *shown)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_it_computes_what_transformers_layers_do(family: str, dtype: torch.dtype) -> None:
    """Every bit of every row, grouped heads, windows, biases, q/k norms and all axes included."""
    model = tiny.build(family, dtype=dtype)
    with torch.no_grad():  # a tiny model's norms and biases are made of ones and zeros
        for name, weight in model.get_decoder().named_parameters():
            if "norm" in name or name.endswith("bias"):
                weight.add_(0.3 * torch.randn_like(weight))
    theirs = Theirs(model)
    served = serve(copy.deepcopy(model))
    for new in STEPS:
        rows = sum(count for _, count in new)
        shown: tuple[Any, ...] = ()
        if family == "qwen3_vl" and rows > 3:
            visual = torch.arange(1, rows, 3)
            levels = [torch.randn(len(visual), 64).to(dtype) for _ in range(2)]
            shown = (visual, levels)
        if new is STEPS[0]:
            runs = Run(theirs.forward, served), Run(served.forward, served)
        want, got = (run.step(new, *shown) for run in runs)
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_embeddings_are_scaled_as_transformers_scales_them(dtype: torch.dtype) -> None:
    """By a root that no dtype holds, so that every rounding of it counts."""
    model = Gemma3ForCausalLM(gemma3()).to(dtype)
    tokens = torch.arange(90)
    with torch.no_grad():
        want = model.get_input_embeddings()(tokens)
    assert torch.equal(serve(model).embed(tokens), want)


def test_output_does_not_change_what_it_was_given() -> None:
    """Embeddings may be slices of a buffer that a CUDA graph reads."""
    served = serve(tiny.build("qwen3_vl"))
    embeddings = torch.randn(6, 64, dtype=torch.float64)
    before, positions = embeddings.clone(), torch.arange(6).repeat(3, 1)
    step = ScratchCache(served, 1, 8).step([(0, 6)])
    visual = torch.arange(3)
    levels = [torch.randn(3, 64, dtype=torch.float64) for _ in range(2)]
    served.forward(embeddings, positions, step, visual, levels)
    assert torch.equal(embeddings, before)


def llama(**changes: Any) -> LlamaConfig:
    return LlamaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=2, **changes)


def qwen3(**changes: Any) -> Qwen3Config:
    small = {"hidden_size": 32, "num_hidden_layers": 2}
    return Qwen3Config(**{**small, **changes}, num_attention_heads=2, num_key_value_heads=2)


def mistral(**changes: Any) -> MistralConfig:
    return MistralConfig(num_hidden_layers=2, **changes)


def gemma3(**changes: Any) -> Gemma3TextConfig:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    small = {"hidden_size": 40, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 97}
    return Gemma3TextConfig(**{**heads, **small, **changes})


def qwen3_vl(**rope: Any) -> Qwen3VLConfig:
    parameters = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [24, 20, 20]}
    return Qwen3VLConfig(text_config={"rope_parameters": {**parameters, **rope}})


def roped(**rope: Any) -> LlamaConfig:
    config = llama()
    config.rope_parameters = {"rope_type": "default", "rope_theta": 1e4, **rope}
    return config


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "activation": (lambda: llama(hidden_act="relu2"), "hidden_act is 'relu2'"),
    "rotary": (lambda: roped(rope_type="spiral"), "rope_type is 'spiral'"),
    "rotary of parts": (
        lambda: roped(partial_rotary_factor=0.5),
        "partial_rotary_factor is 0.5",
    ),
    "rotary without its base": (lambda: roped(rope_theta=None), "rope_parameters is {.*None"),
    "yarn without a factor": (lambda: roped(rope_type="yarn"), "rope_parameters is {.*'yarn'"),
    "axes of a text model": (lambda: roped(mrope_section=[2, 3, 3]), r"mrope_section is \[2, 3, 3"),
    "sections": (lambda: qwen3_vl(mrope_section=[24, 20, 24]), r"mrope_section is \[24, 20, 24"),
    "order of sections": (lambda: qwen3_vl(mrope_interleaved=False), "mrope_interleaved is False"),
    "epsilon": (lambda: llama(rms_norm_eps=0.0), "rms_norm_eps is 0.0"),
    "a bias": (lambda: qwen3(mlp_bias=True), "mlp_bias is True"),
    "experts": (lambda: llama(num_local_experts=8), "num_local_experts is 8"),
    "soft-cap": (lambda: llama(attn_logit_softcapping=50.0), "attn_logit_softcapping is 50.0"),
    "soft-cap of logits": (
        lambda: gemma3(final_logit_softcapping=30.0),
        "final_logit_softcapping is 30.0",
    ),
    "rows that see later ones": (
        lambda: gemma3(use_bidirectional_attention=True),
        "use_bidirectional_attention is True",
    ),
    "kinds of layers": (
        lambda: mistral(layer_types=["full_attention", "sliding_attention"]),
        "layer_types is 'full_attention'",
    ),
    "a window of nothing": (lambda: mistral(sliding_window=0), "sliding_window is 0"),
    "odd heads": (
        lambda: Qwen2Config(hidden_size=66, num_attention_heads=2, num_key_value_heads=2),
        "head_dim is 33",
    ),
    "scaled residuals": (lambda: llama(residual_multiplier=0.2), "residual_multiplier is 0.2"),
    "a window": (lambda: llama(sliding_window=9), "sliding_window is 9"),
    "keys of a rotary": (lambda: roped(spin=2.0), "rope_parameters is {.*'spin': 2.0"),
    "a bias that Mistral lacks": (lambda: mistral(attention_bias=True), "attention_bias is True"),
    "windows": (
        lambda: llama(layer_types=["sliding_attention"] * 2),
        "layer_types is 'sliding_attention'",
    ),
    "a window without a size": (
        lambda: windowless(qwen3(layer_types=["sliding_attention"] * 2)),
        "sliding_window is None",
    ),
}


def windowless(config: Any) -> Any:
    config.sliding_window = None
    return config


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_described_is_refused_by_field_and_value(name: str) -> None:
    build, reason = REFUSED[name]
    with pytest.raises(UnsupportedModelError, match=f"{reason}.* in its config.json"):
        check_config(build())


def test_a_description_is_plain_data(family: str) -> None:
    config = tiny.build(family).config
    one, other = (SUPPORTED[config.model_type].describe(config) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)


def test_descriptions_say_what_configurations_mean() -> None:
    def described(family: str) -> DecoderSpec:
        config = tiny.build(family).config
        return SUPPORTED[config.model_type].describe(config)

    windows = described("qwen3")
    assert [layer.window for layer in windows.layers] == [0, 9, 0, 9]
    assert len(windows.rotaries) == 1
    gemma = described("gemma3_text")
    assert [layer.rotary for layer in gemma.layers] == [1, 0, 1, 0]
    assert [layer.window for layer in gemma.layers] == [9, 0, 9, 0]
    interleaved = described("qwen3_vl")
    assert interleaved.rotaries[0].axis == (0, 1, 2, 0, 1, 2, 0, 1)
    block = described("qwen2_5_vl")
    assert block.rotaries[0].axis == (0, 0, 1, 1, 1, 2, 2, 2)
    assert described("qwen2_vl") == replace(block, epsilon=1e-5)
    assert described("internvl") == described("qwen2")  # up to where frequencies would change
    assert block.biases == described("llava_qwen2").biases == Biases(qkv=True)
    assert [layer.window for layer in described("llava_mistral").layers] == [36] * 4


def test_a_field_may_say_what_the_family_has_anyway() -> None:
    said, unsaid = (
        SUPPORTED["qwen2"].describe(Qwen2Config(**more)) for more in ({"attention_bias": True}, {})
    )
    assert said == unsaid
    assert said.biases == Biases(qkv=True)


def test_weights_are_refused_by_name() -> None:
    surplus, missing, misshapen = (tiny.build("qwen3") for _ in range(3))
    layers = [model.get_decoder().layers for model in (surplus, missing, misshapen)]
    layers[0][1].mlp.up_proj.bias = torch.nn.Parameter(torch.zeros(96))
    del layers[1][2].self_attn.k_norm
    layers[2][3].self_attn.q_norm.weight = torch.nn.Parameter(torch.ones(64))
    for model, reason in (
        (surplus, r"model\.layers\.1\.mlp\.up_proj\.bias has no place in the model's description"),
        (missing, r"model\.layers\.2\.self_attn\.k_norm\.weight is missing"),
        (misshapen, r"model\.layers\.3\.self_attn\.q_norm\.weight is \[64\].* says \[16\]"),
    ):
        with pytest.raises(UnsupportedModelError, match=reason):
            serve(model)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured by Linux")
def test_weights_are_in_memory_once_while_they_are_merged() -> None:
    """The most that the process holds grows by one of six layers, not by the model."""
    command = [sys.executable, "-m", "saccade_testing.merged_memory"]
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["size"] > 300e6
    assert found["peak"] < 0.35 * found["size"]  # a layer, and the one it is merged into
    assert found["end"] < 0.1 * found["size"]
