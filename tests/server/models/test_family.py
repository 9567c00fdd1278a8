"""Loading, and refusing with a reason what would not be served right."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    Dinov2WithRegistersConfig,
    GemmaConfig,
    Idefics3Config,
    InternVLConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    Qwen2Config,
    Qwen3Config,
    SmolVLMConfig,
)

from saccade_kernels.gpu import tuning
from saccade_server.models.conversation import Message
from saccade_server.models.family import (
    SUPPORTED,
    UnsupportedModelError,
    check_config,
    load_config,
    load_model,
    serve,
)
from saccade_server.models.prompt import PromptProcessor
from saccade_server.models.scratch import ScratchCache
from saccade_testing import tiny
from saccade_testing.processors import PromptFolder

CPU = torch.device("cpu")


def test_a_saved_model_is_loaded(family: str, tmp_path: Path, recwarn: Any) -> None:
    model = tiny.build(family, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    served = load_model(str(tmp_path), dtype=torch.float32, device=CPU)
    assert type(served) is SUPPORTED[model.config.model_type]
    step = ScratchCache(served, 1, 8).step([(0, 3)])
    positions = served.positions([10, 11, 12]).table
    logits = served.logits(
        served.forward(served.embed(torch.tensor([10, 11, 12])), positions, step)
    )
    with torch.no_grad():
        own = model(input_ids=torch.tensor([[10, 11, 12]]), use_cache=False).logits[0]
    torch.testing.assert_close(logits, own)
    assert not list(recwarn)


def test_the_asked_for_precision_is_loaded(tmp_path: Path) -> None:
    tiny.build("llava", dtype=torch.float32).save_pretrained(tmp_path)
    assert load_model(str(tmp_path), dtype=torch.bfloat16, device=CPU).dtype == torch.bfloat16


def test_ends_of_sequences_come_from_all_configurations() -> None:
    model = tiny.build("llama")
    model.generation_config.eos_token_id = [7, 3]
    assert serve(model).eos_token_ids == (2, 3, 7)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "a/b/c"])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match="there is no such folder"):
        load_model(name, dtype=torch.float32, device=CPU)


def test_a_hub_name_is_not_looked_up_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*arguments: Any, **others: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr("socket.socket.connect", no_network)
    with pytest.raises(UnsupportedModelError, match="no model of this name can be fetched"):
        load_model("somebody/some-model", dtype=torch.float32, device=CPU)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="the folder is empty"):
        load_config(str(tmp_path))


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    LlamaConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="has no weights"):
        load_model(str(tmp_path), dtype=torch.float32, device=CPU)


def test_heads_that_a_gpu_has_no_kernel_for_are_refused_before_weights_are_read(
    tmp_path: Path,
) -> None:
    LlamaConfig(num_hidden_layers=1, head_dim=512).save_pretrained(tmp_path)  # and no weights
    with tuning.on("sm_86"), pytest.raises(UnsupportedModelError) as refused:
        load_model(str(tmp_path), dtype=torch.bfloat16, device=torch.device("cuda"))
    assert str(refused.value) == (
        f"{tmp_path}: heads of 512 dimensions in bfloat16 have no kernel for a GPU of compute "
        "capability 8.6; heads of up to 256 have"
    )


MISSING = {
    "llama": "model.layers.2.mlp.up_proj.weight",
    "llava_next": "image_newline",
    "internvl": "layer.0.lambda_1",
    "smolvlm": "connector.modality_projection.proj.weight",
}


@pytest.mark.parametrize("kind", MISSING)
def test_weights_that_are_missing_are_not_made_up(kind: str, tmp_path: Path) -> None:
    tiny.build(kind, dtype=torch.float32).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights[next(name for name in weights if name.endswith(MISSING[kind]))]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=f"1 weights are missing: .*{MISSING[kind]}"):
        load_model(str(tmp_path), dtype=torch.float32, device=CPU)


@pytest.mark.parametrize("kind", ["llava_next", "internvl", "smolvlm"])
def test_weights_that_are_left_over_are_named(kind: str, tmp_path: Path) -> None:
    tiny.build(kind, dtype=torch.float32).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), "model.gate.weight": torch.zeros(3)}, file, {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"gate\.weight"):
        load_model(str(tmp_path), dtype=torch.float32, device=CPU)


def test_an_old_name_of_a_tower_is_its_class(tmp_path: Path) -> None:
    """SmolVLM's first checkpoints are Idefics3 and call the tower that, too."""
    vision = {"model_type": "idefics3", "image_size": 512, "patch_size": 16}
    check_config(Idefics3Config(vision_config=vision, scale_factor=4))


def test_code_in_a_model_folder_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("raise AssertionError('run')")
    described = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(UnsupportedModelError):
        load_config(str(tmp_path))


def llama(**changes: Any) -> LlamaConfig:
    return LlamaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=2, **changes)


def rope(kind: str, **others: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, **others}


REFUSED = {
    "an unknown type": (lambda: GemmaConfig(), "model type 'gemma' is not supported"),
    "longrope": (
        lambda: llama(
            rope_parameters=rope(
                "longrope",
                short_factor=[1.0] * 8,
                long_factor=[2.0] * 8,
                original_max_position_embeddings=64,
            )
        ),
        "rope_type is 'longrope' in its config.json",
    ),
    "linear layers": (
        lambda: Qwen3Config(
            num_hidden_layers=2, layer_types=["linear_attention", "full_attention"]
        ),
        "layer_types is 'linear_attention' in its config.json",
    ),
    "quantised": (
        lambda: llama(quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantization_config names 'gptq' .* quantised checkpoints",
    ),
    "another LLaVA": (
        lambda: LlavaConfig(text_config=GemmaConfig()),
        "llava with 'gemma' and 'clip_vision_model' is not supported; supported: llama, mistral, "
        "qwen2 with",
    ),
    "another tower": (
        lambda: LlavaConfig(vision_config=Dinov2WithRegistersConfig()),
        "llava with 'llama' and 'dinov2_with_registers' is not supported; supported: llama, "
        "mistral, qwen2 with clip_vision_model, siglip_vision_model, dinov2",
    ),
    "a class token among tiles": (
        lambda: LlavaNextConfig(vision_feature_select_strategy="full"),
        "vision_feature_select_strategy is 'full' in its config.json; the tower 'clip_vision_",
    ),
    "sizes that tiles do not make": (
        lambda: LlavaNextConfig(image_grid_pinpoints=[[336, 600]]),
        r"image_grid_pinpoints is \[\[336, 600\]\] in its config.json; .* tiles of 336 pixels",
    ),
    "another InternVL": (
        lambda: InternVLConfig(text_config=LlamaConfig()),
        "internvl with 'llama' and 'internvl_vision' is not supported; supported: qwen2, qwen3",
    ),
    "InternVL's class token": (
        lambda: InternVLConfig(vision_feature_select_strategy="full"),
        "vision_feature_select_strategy is 'full' in its config.json",
    ),
    "InternVL's layers": (
        lambda: InternVLConfig(vision_feature_layer=[-2, -1]),
        r"vision_feature_layer is \[-2, -1\] in its config.json",
    ),
    "InternVL's norm": (
        lambda: InternVLConfig(vision_config={"norm_type": "none"}),
        "norm_type is 'none' in its config.json; the norms that are served: layer_norm, rms_norm",
    ),
    "InternVL's features": (
        lambda: InternVLConfig(image_seq_length=64),
        "image_seq_length is 64 in its config.json; a tile of the vision_config has 256 features",
    ),
    "InternVL's squares": (
        lambda: InternVLConfig(downsample_ratio=0.3),
        "downsample_ratio is 0.3 in its config.json; .* share 32 along each side",
    ),
    "tiles that are not square": (
        lambda: InternVLConfig(vision_config={"image_size": [448, 336]}),
        r"image_size is \[448, 336\] in the vision_config of its config.json",
    ),
    "another SmolVLM": (
        lambda: SmolVLMConfig(text_config=Qwen2Config()),
        "smolvlm with 'qwen2' and 'smolvlm_vision' is not supported; supported: llama with",
    ),
    "SmolVLM's squares": (
        lambda: SmolVLMConfig(vision_config={"image_size": 512, "patch_size": 16}, scale_factor=5),
        "scale_factor is 5 in its config.json; it must divide 32 patches along a side",
    ),
    "a quantised tower": (
        lambda: SmolVLMConfig(vision_config={"quantization_config": {"quant_method": "awq"}}),
        "quantization_config names 'awq' in its config.json",
    ),
    "norms of heads": (lambda: llama(qk_layer_norms=True), "qk_layer_norms is True in its config"),
    "a decoder's field in a LLaVA": (
        lambda: LlavaConfig(text_config=Qwen2Config(hidden_act="relu2")),
        "hidden_act is 'relu2' in its config.json",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_reason(name: str) -> None:
    build, reason = REFUSED[name]
    with pytest.raises(UnsupportedModelError, match=reason):
        check_config(build())


@pytest.mark.parametrize("kind", ["default", "linear", "dynamic", "llama3", "yarn"])
def test_rotary_embeddings_that_do_not_depend_on_neighbours_are_served(kind: str) -> None:
    parameters = rope(
        kind,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=64,
    )
    config = llama()
    config.rope_parameters = parameters
    check_config(config)


@pytest.mark.parametrize(
    ("family", "patch"),
    [("llava", 16), ("qwen2_5_vl", 16), ("internvl", 8), ("idefics3", 8), ("smolvlm", 8)],
)
def test_an_image_processor_that_does_not_fit_is_refused(
    family: str, patch: int, prompt_folder: PromptFolder, tmp_path: Path
) -> None:
    folder = Path(prompt_folder(family)[0])
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"].update(image_size=48, patch_size=patch)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="do not fit"):
        PromptProcessor.load(str(tmp_path))


def test_an_image_processor_of_other_tiles_is_refused(
    prompt_folder: PromptFolder, tmp_path: Path
) -> None:
    folder = Path(prompt_folder("llava_next")[0])
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["image_grid_pinpoints"] = [[24, 48], [48, 24]]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=r"do not fit: .*\[48, 48\].* and "):
        PromptProcessor.load(str(tmp_path))


@pytest.mark.parametrize("file", ["tokenizer.json", "processor_config.json"])
def test_what_a_prompt_needs_is_missed_at_load(
    file: str, prompt_folder: PromptFolder, tmp_path: Path
) -> None:
    folder = Path(prompt_folder("llava")[0])
    for path in folder.iterdir():
        if path.name != file:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UnsupportedModelError, match=r"has no tokenizer|has no image processor"):
        PromptProcessor.load(str(tmp_path))


def test_the_demo_model_is_served() -> None:
    folder = Path(__file__).parents[3] / "server/saccade_server/demo/model"
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        pytest.skip("the demo model has not been trained yet")
    from PIL import Image

    prompts = PromptProcessor.load(str(folder))
    served = load_model(str(folder), dtype=torch.float32, device=CPU)
    picture = Image.fromarray(np.zeros((64, 64, 3), np.uint8))
    prompt = prompts.chat([Message("user", (picture, "Describe the image."))])
    assert (prompts.vocab_size, prompts.eos_token_ids) == (served.vocab_size, served.eos_token_ids)
    (image,) = prompt.images
    embeddings = served.embed(torch.tensor(prompt.tokens)).clone()
    (encoded,) = served.encode_images([(image.pixels, image.grid)])
    embeddings[image.start : image.start + image.length] = encoded.features
    own = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        step = ScratchCache(served, 1, len(prompt.tokens)).step([(0, len(prompt.tokens))])
        hidden = served.forward(embeddings, served.positions(prompt.tokens).table, step)
        want = own(
            input_ids=torch.tensor([prompt.tokens]),
            pixel_values=torch.from_numpy(image.pixels)[None],
            use_cache=False,
        ).logits[0]
    torch.testing.assert_close(served.logits(hidden), want, rtol=1e-3, atol=1e-3)
