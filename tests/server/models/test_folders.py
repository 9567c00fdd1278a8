"""Broken model folders end in one sentence that names what is wrong and says what helps."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from saccade_server.models.family import UnsupportedModelError, load_model
from saccade_server.models.prompt import PromptProcessor
from saccade_testing import tiny
from saccade_testing.processors import PromptFolder

Folder = Callable[[str], Path]
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """``whole(kind)``: a folder with configuration and weights; not to be written."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            tiny.build(kind, dtype=torch.float32).save_pretrained(folder)
            made[kind] = folder
        return made[kind]

    return get


@pytest.fixture
def copied(whole: Folder, tmp_path: Path) -> Folder:
    """``copied(kind)``: such a folder of one's own."""

    def get(kind: str = "llama") -> Path:
        shutil.copytree(whole(kind), tmp_path / "m")
        return tmp_path / "m"

    return get


def refused(folder: Path | str, dtype: torch.dtype = torch.float32) -> str:
    """Why the model in a folder does not load: one line, and nothing of a library's own."""
    with pytest.raises(UnsupportedModelError) as raised:
        load_model(str(folder), dtype=dtype, device=torch.device("cpu"))
    message = str(raised.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


def edit(file: Path, **changes: Any) -> None:
    """Set some fields of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def reweigh(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Save the weights again, changed."""
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def test_a_whole_folder_loads(whole: Folder) -> None:
    served = load_model(str(whole("llama")), dtype=torch.float32, device=torch.device("cpu"))
    assert served.layers == 4


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def to_gguf(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "model-q4.gguf").write_bytes(b"GGUF")


def to_adapter(folder: Path) -> None:
    empty(folder)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")


def to_pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def to_shards(folder: Path, shards: object) -> None:
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": shards}))


def cut(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def fill(name: str, value: float) -> Callable[[Path], None]:
    return lambda folder: reweigh(folder, lambda w: w[name].view(-1)[3:4].fill_(value))


def cast(name: str, dtype: torch.dtype) -> Callable[[Path], None]:
    return lambda folder: reweigh(folder, lambda w: w.update({name: w[name].to(dtype)}))


def configure(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", **changes)


NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (empty, "the folder is empty"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "config cut": (lambda f: (f / "config.json").write_text('{"a":'), "config.json is not a JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "config.json is not a JSON"),
    "config deep": (lambda f: (f / "config.json").write_text("[" * 9999), "is not a JSON object"),
    "config of bytes": (lambda f: (f / "config.json").write_bytes(b"\xff\0"), "is not a JSON"),
    "no type": (configure(model_type=None), "names no model_type"),
    "unknown type": (configure(model_type="nonsense"), "'nonsense' is not supported, and code"),
    "another type": (configure(model_type="gpt2"), "'gpt2' is not supported"),
    "no layers": (configure(num_hidden_layers=0), "num_hidden_layers is 0"),
    "layers in words": (configure(num_hidden_layers="four"), "config.json cannot be used"),
    "no heads": (configure(num_attention_heads=0), "config.json"),
    "heads do not divide": (configure(num_attention_heads=5), "config.json cannot be used"),
    "key heads do not divide": (configure(num_key_value_heads=3), "4 query heads and 3 key heads"),
    "no key heads": (configure(num_key_value_heads=0), "num_key_value_heads is 0"),
    "no vocabulary": (configure(vocab_size=0), "vocab_size is 0"),
    "unknown activation": (configure(hidden_act="foo"), "hidden_act is 'foo' in its config.json"),
    "unknown rope": (
        configure(rope_parameters={"rope_type": "foo"}),
        "rope_type is 'foo' in its config.json",
    ),
    "end in words": (
        lambda f: edit(f / "generation_config.json", eos_token_id="x"),
        "eos_token_id is 'x'",
    ),
    "generation cut": (
        lambda f: (f / "generation_config.json").write_text("{"),
        "generation_config.json is not a JSON",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "has no weights"),
    "weights cut": (cut, "damaged or cut short; download it again"),
    "weights empty": (lambda f: (f / WEIGHTS).write_bytes(b""), "damaged or cut short"),
    "weights of nonsense": (lambda f: (f / WEIGHTS).write_bytes(b"x" * 99), "damaged or cut"),
    "pointer": (
        lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"),
        "git lfs pull",
    ),
    "absent shard": (lambda f: to_shards(f, {NORM: "a.safetensors"}), "1 of the 1 files"),
    "odd index": (lambda f: to_shards(f, [1]), "does not say which file"),
    "broken index": (
        lambda f: ((f / WEIGHTS).unlink(), (f / INDEX).write_text("{")),
        "index.json is not a JSON",
    ),
    "pickle": (to_pickle, "as pickles only"),
    "gguf": (to_gguf, 'gguf_file="model-q4.gguf"'),
    "adapter": (to_adapter, "merge it into its base model"),
    "adapter beside": (
        lambda f: (f / "adapter_config.json").write_text("{}"),
        "an adapter (LoRA), which is not applied",
    ),
    "weights a folder": (
        lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()),
        "model.safetensors: cannot be read",
    ),
    "maker's format": (
        lambda f: (empty(f), (f / "params.json").write_text("{}")),
        "convert it with the script",
    ),
    "missing": (lambda f: reweigh(f, lambda w: w.pop(UP)), f"1 weights are missing: {UP}"),
    "left over": (
        lambda f: reweigh(f, lambda w: w.update({"model.layers.9.w": torch.ones(2)})),
        "1 weights are not the model's: model.layers.9.w",
    ),
    "fewer layers": (configure(num_hidden_layers=2), "weights are not the model's"),
    "more layers": (configure(num_hidden_layers=5), "weights are missing"),
    "another width": (configure(intermediate_size=12), "another shape than its configuration"),
    "integers": (cast(UP, torch.int32), f"{UP} is of type I32, and only weights in float32"),
    "bytes": (cast(UP, torch.uint8), f"{UP} is of type U8"),
    "eight bits": (cast(UP, torch.float8_e4m3fn), f"{UP} is of type F8_E4M3"),
    "nan": (fill(UP, float("nan")), f"1 tensors hold NaN or infinity, the first of them {UP}"),
    "inf": (fill(NORM, float("inf")), f"hold NaN or infinity, the first of them {NORM}"),
    "-inf": (fill("lm_head.weight", float("-inf")), "the first of them lm_head.weight"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_says_what_is_wrong(name: str, copied: Folder) -> None:
    damage, reason = BROKEN[name]
    folder = copied()
    damage(folder)
    assert reason in refused(folder)


def test_values_that_float16_cannot_hold_are_named_as_such(copied: Folder) -> None:
    folder = copied()
    fill(UP, 1e5)(folder)
    load_model(str(folder), dtype=torch.bfloat16, device=torch.device("cpu"))
    message = refused(folder, torch.float16)
    assert UP in message
    assert "too large for float16: serve it in bfloat16" in message


def test_a_vision_tower_is_looked_at_too(copied: Folder) -> None:
    folder = copied("llava")
    name = next(n for n in load_file(folder / WEIGHTS) if "vision" in n and "mlp" in n)
    fill(name, float("nan"))(folder)
    assert "NaN or infinity" in refused(folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_any_floats_and_tables_beside_the_weights_are_fine(
    dtype: torch.dtype, copied: Folder
) -> None:
    folder = copied()
    reweigh(
        folder,
        lambda w: w.update(
            {UP: w[UP].to(dtype), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
        ),
    )
    load_model(str(folder), dtype=torch.float32, device=torch.device("cpu"))


def test_tied_embeddings_are_saved_once(copied: Folder) -> None:
    folder = copied()
    configure(tie_word_embeddings=True)(folder)
    reweigh(folder, lambda w: w.pop("lm_head.weight"))
    served = load_model(str(folder), dtype=torch.float32, device=torch.device("cpu"))
    assert torch.equal(served.model.lm_head.weight, served.model.model.embed_tokens.weight)


def test_a_file_is_not_a_folder(copied: Folder, tmp_path: Path) -> None:
    folder = copied()
    assert "name the folder" in refused(folder / WEIGHTS)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert 'gguf_file="x.gguf"' in refused(tmp_path / "x.gguf")


@pytest.mark.parametrize("file", ["config.json", WEIGHTS, "."])
def test_what_may_not_be_read_is_named(
    file: str, copied: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied()
    path = folder / file
    path.chmod(0)
    if os.access(path, os.R_OK):  # the superuser reads everything
        path.chmod(0o700)
        monkeypatch.setattr("io.open", _without(path, open))
        monkeypatch.setattr(Path, "open", _without(path, Path.open))
        monkeypatch.setattr(Path, "iterdir", _without(path, Path.iterdir))
    message = refused(folder)
    path.chmod(0o700)
    assert f"{path}: may not be read by this user" in message


def _without(path: Path, call: Any) -> Any:
    def guarded(first: Any, *arguments: Any, **named: Any) -> Any:
        if Path(first) == path:
            raise PermissionError(13, "Permission denied", str(path))
        return call(first, *arguments, **named)

    return guarded


def test_code_of_its_own_is_not_run_and_that_is_said(
    copied: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copied()
    configure(auto_map={"AutoModelForCausalLM": "code.Model"})(folder)
    (folder / "code.py").write_text("raise AssertionError('run')")
    load_model(str(folder), dtype=torch.float32, device=torch.device("cpu"))
    assert "its own code is not run; it is served as llama" in caplog.text


FEWER = {"vocab_size": 300}
UNREADABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer that can be read"),
    "tokenizer cut": (lambda f: (f / "tokenizer.json").write_text('{"a":'), "no tokenizer"),
    "another's": (lambda f: (f / "tokenizer.json").write_text('{"a": 1}'), "no tokenizer"),
    "its settings": (
        lambda f: (f / "tokenizer_config.json").write_text("{"),
        "tokenizer_config.json is not a JSON",
    ),
    "template": (
        lambda f: (f / "chat_template.jinja").write_text("a\n{% for %}"),
        "error in line 2",
    ),
    "binary template": (
        lambda f: (f / "chat_template.jinja").write_bytes(b"\xff\0"),
        "no tokenizer that can be read",
    ),
    "another model's": (
        lambda f: edit(
            f / "config.json",
            text_config={**json.loads((f / "config.json").read_text())["text_config"], **FEWER},
        ),
        "makes tokens that the model does not have",
    ),
    "no processor": (lambda f: (f / "processor_config.json").unlink(), "no image processor"),
    "processor cut": (lambda f: (f / "processor_config.json").write_text("{"), "is not a JSON"),
    "nothing in it": (lambda f: (f / "processor_config.json").write_text("{}"), "no image pro"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_prompts_need_says_what_is_wrong(
    name: str, prompt_folder: PromptFolder, tmp_path: Path
) -> None:
    damage, reason = UNREADABLE[name]
    folder = tmp_path / "m"
    shutil.copytree(prompt_folder("llava")[0], folder)
    damage(folder)
    with pytest.raises(UnsupportedModelError, match=reason) as raised:
        PromptProcessor.load(str(folder))
    assert "\n" not in str(raised.value)
    assert str(folder) in str(raised.value)
