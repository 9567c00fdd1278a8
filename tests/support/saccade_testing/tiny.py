"""Tiny random models of every family, and a prompt for each.

Weights are larger than a real initialisation so that attention is far from uniform and a mistake
in it shows. Everything is float64: agreement then means equality up to rounding.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import transformers as hf

FAMILIES = ("llama", "qwen3", "llava", "qwen2_5_vl", "qwen3_vl")
"""One of each kind; tests of every family take the fixture ``family``, which has all BUILDERS."""
TOWERS = ("llava_siglip", "llava_dinov2", "llava_next_qwen2", "internvl_qwen3", "idefics3")
"""Of BUILDERS those with a tower of their own before what others have, too."""
VOCABULARY = 97
IMAGE_TOKEN, VIDEO_TOKEN, VISION_START, VISION_END, TILE = 5, 6, 7, 8, 9
BOS, EOS = 1, 2
WINDOW = 9

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": 0,
}
PINPOINTS = [[24, 48], [48, 24], [48, 48], [24, 72]]
Strategy = Literal["default", "full"]
TILED = ("llava", "internvl")
NEXT_IMAGES = (
    ((40, 90), (1, 3), 3, 7),  # height and width; tiles down and across; rows and columns left
    ((30, 25), (2, 2), 6, 6),
    ((20, 100), (1, 3), 1, 9),
    ((70, 20), (2, 1), 6, 1),
)
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 8,
    "initializer_range": 0.15,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
QWEN_TOKENS: dict[str, Any] = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": VIDEO_TOKEN,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}


@dataclass(frozen=True)
class TinyImage:
    """One view of an image; its features are at [start, start + length).

    ``before`` and ``behind`` count the tokens beside them that name the view. ``size`` is the
    image's height and width, where transformers asks for them.
    """

    start: int
    length: int
    pixels: np.ndarray
    grid: tuple[int, int, int] | None = None
    image: int = 0
    before: int = 0
    behind: int = 0
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class TinyPrompt:
    """Token ids with the placeholders already repeated, and their images' views."""

    tokens: tuple[int, ...]
    images: tuple[TinyImage, ...] = ()
    form: str = "tiles"  # in which transformers wants pixels

    def arguments(self, ids: torch.Tensor, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
        """What transformers wants for the images beside token ids [1, n]."""
        pixels = [torch.from_numpy(view.pixels).to(dtype) for view in self.images]
        if not pixels:
            return {}
        if self.form == "patches":
            return {
                "pixel_values": torch.cat(pixels),
                "image_grid_thw": torch.tensor([view.grid for view in self.images]),
                "mm_token_type_ids": (ids == IMAGE_TOKEN).int(),
            }
        if self.form == "details":
            # Views in turn: whole, tiles. Images have as many tiles as the most, the rest empty.
            shown = [torch.cat([one[None], many.flatten(0, 1)]) for one, many in _pairs(pixels)]
            padded = torch.nn.utils.rnn.pad_sequence(shown, batch_first=True)
            sizes = [view.size for view in self.images[::2]]
            return {"pixel_values": padded, "image_sizes": torch.tensor(sizes)}
        tiles = torch.stack(pixels)
        return {"pixel_values": tiles[None] if self.form == "prompts" else tiles}

    @property
    def bare(self) -> tuple[int, ...]:
        """The tokens without all that stands for images."""
        gone = {
            place
            for view in self.images
            for place in range(view.start - view.before, view.start + view.length + view.behind)
        }
        return tuple(token for place, token in enumerate(self.tokens) if place not in gone)

    @property
    def spans(self) -> list[tuple[int, int, tuple[int, int, int] | None]]:
        return [(image.start, image.length, image.grid) for image in self.images]


def build(family: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    """A random transformers model of the family, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BUILDERS[family]()
    if family not in FAMILIES:  # whose tests have seeds that never say an image's token
        # transformers takes it for an image when an answer is read again.
        model.get_output_embeddings().weight.data[[IMAGE_TOKEN, VIDEO_TOKEN]] = 0
    model.set_attn_implementation("sdpa")
    return model.to(dtype).eval()


def prompt(family: str, images: int = 2, seed: int = 0, text: int = 11) -> TinyPrompt:
    """A prompt of random text around ``images`` images (none for a language model)."""
    rng = np.random.default_rng(seed)
    tokens = [BOS, *_words(rng, text)]
    views: list[TinyImage] = []
    for index in range(images if family in IMAGE_FAMILIES else 0):
        tokens.append(VISION_START)
        for view in _image(family, rng, index):
            tokens += [TILE] * view.before
            views.append(replace(view, start=len(tokens), image=index))
            tokens += [IMAGE_TOKEN] * view.length + [TILE] * view.behind
        tokens += [VISION_END, *_words(rng, 3 + index)]
    return TinyPrompt((*tokens, *_words(rng, 4)), tuple(views), FORMS.get(family, "tiles"))


def _words(rng: np.random.Generator, count: int) -> list[int]:
    words: list[int] = rng.integers(10, VOCABULARY, count).tolist()
    return words


def _pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(items[::2], items[1::2], strict=True)


def _image(family: str, rng: np.random.Generator, index: int) -> list[TinyImage]:
    """The views of one image, without their places."""

    def tile(*more: int) -> np.ndarray:
        return rng.standard_normal((*more, 3, 24, 24)).astype(np.float32)

    if family.startswith("llava_next"):
        size, tiles, rows, columns = NEXT_IMAGES[index % len(NEXT_IMAGES)]
        detail = TinyImage(0, rows * (columns + 1), tile(*tiles), (1, rows, columns), size=size)
        return [TinyImage(0, 9, tile(), size=size), detail]
    if family.startswith("internvl"):
        return [TinyImage(0, 9, tile()) for _ in range((3, 1, 5)[index % 3])]
    if FORMS.get(family) == "prompts":
        count = (3, 1, 4)[index % 3]
        return [TinyImage(0, 9, tile(), before=2, behind=i == count - 1) for i in range(count)]
    if family.startswith("llava"):
        return [TinyImage(0, 9, tile())]
    grid = ((1, 4, 6), (1, 8, 4), (1, 4, 4))[index % 3]
    patches = grid[1] * grid[2]
    pixels = rng.standard_normal((patches, 3 * 2 * 8 * 8)).astype(np.float32)
    return [TinyImage(0, patches // 4, pixels, grid)]


def _llama() -> Any:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT))


def _qwen3() -> Any:
    """Two of the four layers attend within a window, so that windows are tested too."""
    return hf.Qwen3ForCausalLM(
        hf.Qwen3Config(
            **TEXT,
            use_sliding_window=True,
            sliding_window=WINDOW,
            layer_types=["full_attention", "sliding_attention"] * 2,
        )
    )


def _llava(text: Any = None, vision: Any = None, strategy: Strategy = "default") -> Any:
    config = hf.LlavaConfig(
        vision_config=vision or hf.CLIPVisionConfig(**TOWER, projection_dim=32),
        text_config=text or hf.LlamaConfig(**TEXT),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=9,
        vision_feature_layer=-2,
        vision_feature_select_strategy=strategy,
    )
    return hf.LlavaForConditionalGeneration(config)


def _llava_next(text: Any = None, vision: Any = None, strategy: Strategy = "default") -> Any:
    config = hf.LlavaNextConfig(
        vision_config=vision or hf.CLIPVisionConfig(**TOWER, projection_dim=32),
        text_config=text or hf.LlamaConfig(**TEXT),
        image_token_index=IMAGE_TOKEN,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=[-2, -1],
        vision_feature_select_strategy=strategy,
    )
    return hf.LlavaNextForConditionalGeneration(config)


def _llava_next_qwen2() -> Any:
    """A tower without a class token."""
    return _llava_next(_qwen2_config(), hf.SiglipVisionConfig(**TOWER), "full")


def _internvl(text: Any = None) -> Any:
    config = hf.InternVLConfig(
        vision_config={**TOWER, "patch_size": 4},
        text_config=text or _qwen2_config(rope_parameters=DYNAMIC),
        image_token_id=IMAGE_TOKEN,
        image_seq_length=9,
        tie_word_embeddings=False,
    )
    return hf.InternVLForConditionalGeneration(config)


def _internvl_qwen3() -> Any:
    return _internvl(hf.Qwen3Config(**TEXT))


def _smolvlm() -> Any:
    return hf.SmolVLMForConditionalGeneration(hf.SmolVLMConfig(**_split()))


def _idefics3() -> Any:
    return hf.Idefics3ForConditionalGeneration(hf.Idefics3Config(**_split()))


def _split() -> dict[str, Any]:
    return {
        "vision_config": {**TOWER, "patch_size": 4},
        "text_config": hf.LlamaConfig(**TEXT),
        "image_token_id": IMAGE_TOKEN,
        "scale_factor": 2,
    }


def _llava_siglip() -> Any:
    """A tower without a class token: all that it makes are patches."""
    return _llava(vision=hf.SiglipVisionConfig(**TOWER), strategy="full")


def _llava_dinov2() -> Any:
    """Layers' outputs are scaled by weights, and the MLP is gated."""
    return _llava(vision=hf.Dinov2Config(**TOWER, use_swiglu_ffn=True, layerscale_value=0.7))


def _qwen2_vl() -> Any:
    text = _without_head_dim()
    vision = {"depth": 3, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 8}
    config = hf.Qwen2VLConfig(
        text_config={**text, "rope_parameters": dict(MROPE)},
        vision_config={**vision, "initializer_range": 0.15},
        **QWEN_TOKENS,
    )
    return hf.Qwen2VLForConditionalGeneration(config)


def _qwen2_5_vl() -> Any:
    text = _without_head_dim()
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 8,
        "window_size": 32,
        "fullatt_block_indexes": [1],
        "out_hidden_size": 64,
        "initializer_range": 0.15,
    }
    config = hf.Qwen2_5_VLConfig(
        text_config={**text, "rope_parameters": dict(MROPE)}, vision_config=vision, **QWEN_TOKENS
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config)


def _qwen3_vl() -> Any:
    vision = {
        "depth": 4,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 8,
        "out_hidden_size": 64,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 2],
        "initializer_range": 0.15,
    }
    config = hf.Qwen3VLConfig(
        text_config={**TEXT, "rope_parameters": {**MROPE, "mrope_interleaved": True}},
        vision_config=vision,
        **QWEN_TOKENS,
    )
    return hf.Qwen3VLForConditionalGeneration(config)


def _mistral() -> Any:
    return hf.MistralForCausalLM(hf.MistralConfig(**TEXT, sliding_window=WINDOW))


def _without_head_dim() -> dict[str, Any]:
    return {name: value for name, value in TEXT.items() if name != "head_dim"}


def _qwen2_config(**more: Any) -> hf.Qwen2Config:
    return hf.Qwen2Config(**_without_head_dim(), **more)


def _qwen2() -> Any:
    return hf.Qwen2ForCausalLM(_qwen2_config())


def _gemma3_text() -> Any:
    """Layers of two kinds, each with its own rotation; an unusual scale of scores."""
    local, far = ({"rope_type": "default", "rope_theta": theta} for theta in (1e4, 1e6))
    config = hf.Gemma3TextConfig(
        **TEXT,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"] * 2,
        rope_parameters={
            "sliding_attention": local,
            "full_attention": {**far, "rope_type": "linear", "factor": 8.0},
        },
        query_pre_attn_scalar=20,
    )
    return hf.Gemma3ForCausalLM(config)


def _llava_mistral() -> Any:
    """A window that reaches over two images, and not over a long prompt."""
    return _llava(hf.MistralConfig(**TEXT, sliding_window=4 * WINDOW))


def _llava_qwen2() -> Any:
    return _llava(_qwen2_config())


BUILDERS = {
    "llama": _llama,
    "qwen3": _qwen3,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "gemma3_text": _gemma3_text,
    "llava": _llava,
    "llava_mistral": _llava_mistral,
    "llava_qwen2": _llava_qwen2,
    "llava_siglip": _llava_siglip,
    "llava_dinov2": _llava_dinov2,
    "llava_next": _llava_next,
    "llava_next_qwen2": _llava_next_qwen2,
    "internvl": _internvl,
    "internvl_qwen3": _internvl_qwen3,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
}
FORMS = {
    "llava_next": "details",
    "llava_next_qwen2": "details",
    "idefics3": "prompts",
    "smolvlm": "prompts",
    "qwen2_vl": "patches",
    "qwen2_5_vl": "patches",
    "qwen3_vl": "patches",
}
IMAGE_FAMILIES = tuple(name for name in BUILDERS if name in FORMS or name.startswith(TILED))
