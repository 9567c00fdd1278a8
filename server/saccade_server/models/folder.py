"""What must lie in a model folder, checked by names before anything of it is read.

Whatever is wrong ends in one sentence that says what helps; only what passes here is given to
transformers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CONFIG = "config.json"
OPTIONAL = (
    "generation_config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
"""What transformers does without where it is missing, and in part also where it is broken."""

ADAPTER = "adapter_config.json"
HUB_HELP = (
    "it is no folder here, and no model of this name can be fetched from the Hugging Face hub: "
    "check the name and the connection, or download the model and name its folder"
)

HUB_WEIGHTS_HELP = (
    "its weights cannot be fetched as safetensors: check the connection, or download the model, "
    "have transformers save it with save_pretrained, and name its folder"
)


class UnsupportedModelError(ValueError):
    """The model cannot be served; the message says why."""


def is_local(model: str) -> bool:
    """True if ``model`` can only be meant as a path, or is one."""
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1
    return looks_local or Path(model).exists()


def check_folder(folder: Path) -> None:
    """Refuse what is no model folder of transformers' own format.

    Raises:
        UnsupportedModelError: with the reason and what helps.
    """
    try:
        _check_is_folder(folder)
        names = {entry.name for entry in folder.iterdir()}
        if not names:
            raise UnsupportedModelError(f"{folder}: the folder is empty; finish the download")
        _check_format(folder, names)
        _check_configs(folder, names)
    except OSError as error:
        raise unreadable(error, folder) from None


def _check_is_folder(folder: Path) -> None:
    if not folder.exists():
        raise UnsupportedModelError(f"{folder}: there is no such folder")
    if folder.suffix.lower() == ".gguf":
        raise UnsupportedModelError(gguf_help(folder.parent, folder.name))
    if not folder.is_dir():
        message = f"{folder}: is a file; name the folder that has the model's {CONFIG} and weights"
        raise UnsupportedModelError(message)


def _check_format(folder: Path, names: set[str]) -> None:
    """Refuse folders of other formats by what they have in place of a configuration."""
    ggufs = sorted(name for name in names if name.lower().endswith(".gguf"))
    if ggufs and not any(name.endswith(".safetensors") for name in names):
        raise UnsupportedModelError(gguf_help(folder, ggufs[0]))
    if ADAPTER in names:
        raise UnsupportedModelError(
            f"{folder}: holds an adapter (LoRA), which is not applied; merge it into its base "
            f"model first, with peft's merge_and_unload and save_pretrained ({ADAPTER} beside "
            "weights that have it already can be removed)"
        )
    if CONFIG in names:
        return
    if "params.json" in names:
        raise UnsupportedModelError(
            f"{folder}: holds a model in its maker's own format; convert it with the script that "
            "transformers has for it, or download the version for transformers"
        )
    raise UnsupportedModelError(
        f"{folder}: has no {CONFIG}, so it is not a model folder as transformers saves one; is a "
        "folder inside it meant, or was the download not finished?"
    )


def _check_configs(folder: Path, names: set[str]) -> None:
    """Refuse files that are no JSON objects, and a configuration that is no model's."""
    found = {name: read_json(folder / name) for name in (CONFIG, *OPTIONAL) if name in names}
    if not isinstance(found[CONFIG].get("model_type"), str):
        raise UnsupportedModelError(
            f"{folder}: its {CONFIG} names no model_type, so it is not a model as transformers "
            "saves one; download the version for transformers"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UnsupportedModelError: there is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except PermissionError:
        raise
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UnsupportedModelError(
            f"{path.parent}: its {path.name} is not a JSON object; download the file again"
        )
    return found


def unreadable(error: OSError, path: Path) -> UnsupportedModelError:
    """A refusal in place of the system's error."""
    name = error.filename or path
    if isinstance(error, PermissionError):
        message = f"{name}: may not be read by this user; give it read permission"
    else:
        message = f"{name}: cannot be read ({error.strerror}); check the folder and its disk"
    return UnsupportedModelError(message)


def gguf_help(folder: str | os.PathLike[str], name: str) -> str:
    """How to convert a GGUF file to what is served."""
    return (
        f"{Path(folder) / name}: GGUF weights are not served; convert them to a folder first, with "
        f'transformers (and gguf, accelerate): AutoModelForCausalLM.from_pretrained("{folder}", '
        f'gguf_file="{name}", quantization_config=GgufConfig(dequantize=True)) and '
        f'AutoTokenizer.from_pretrained("{folder}", gguf_file="{name}"), then save_pretrained(OUT) '
        "of both"
    )


@contextmanager
def named(model: str) -> Iterator[None]:
    """Begin a refusal that comes from inside with the model it is about."""
    try:
        yield
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{model}: {error}") from error.__cause__


def in_short(error: Exception) -> str:
    """The kind of an error, and the end of what it says if that is one line of words."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    brief = lines and len(lines) <= 2 and len(lines[-1]) <= 120
    return f"{type(error).__name__}: {lines[-1]}" if brief else type(error).__name__
