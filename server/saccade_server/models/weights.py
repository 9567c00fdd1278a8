"""Weights are exactly the model's, and numbers: anything else refuses to load.

transformers fills what a checkpoint lacks with random numbers, leaves out what the model does not
have, and casts whatever type it finds; a request would be answered with nonsense and nobody told.
Types and completeness are read from the files' headers, before a weight is; that all values are
finite is looked at once, where the weights are served.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from saccade_server.models.base import ServedModel
from saccade_server.models.folder import UnsupportedModelError, gguf_help, read_json, unreadable

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
HARMLESS = ("inv_freq", "position_ids", "masked_bias")
"""How names of tables end that old checkpoints hold beside the weights; models compute them."""

POINTER = b"version https://git-lfs"


def check_files(folder: Path) -> None:
    """Refuse a folder whose weights are not whole safetensors files of floating-point numbers.

    Raises:
        UnsupportedModelError: with the reason and what helps.
    """
    try:
        for path in weight_files(folder):
            _check_file(path)
    except OSError as error:
        raise unreadable(error, folder) from None


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights.

    Raises:
        UnsupportedModelError: there are none, or some that the index names are not there.
    """
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    if not (folder / INDEX).exists():
        raise UnsupportedModelError(_without_weights(folder))
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise UnsupportedModelError(
            f"{folder}: its {INDEX} does not say which file holds which weight; download it again"
        )
    paths = [folder / name for name in sorted(set(places.values()))]
    absent = [path.name for path in paths if not path.is_file()]
    if absent or not paths:
        raise UnsupportedModelError(
            f"{folder}: {len(absent)} of the {len(paths)} files of weights that its index names "
            f"are not there ({', '.join(absent[:3])}); finish the download"
        )
    return paths


def check_report(model: str, report: Mapping[str, Any]) -> None:
    """Refuse what transformers found lacking, left over or of another shape.

    Args:
        report: what ``from_pretrained`` tells with ``output_loading_info``. A weight that is
            another's under a second name (tied embeddings) is neither.

    Raises:
        UnsupportedModelError: it found something.
    """
    missing = sorted(report["missing_keys"])
    wrong = sorted(str(entry[0]) for entry in report["mismatched_keys"])
    extra = sorted(name for name in report["unexpected_keys"] if not name.endswith(HARMLESS))
    problems = (
        (missing, "weights are missing"),
        (wrong, "weights have another shape than its configuration says"),
        (extra, "weights are not the model's"),
    )
    for names, problem in problems:
        if names:
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise UnsupportedModelError(
                f"{model}: {len(names)} {problem}: {some}; its files do not belong together, or "
                "the download was not finished"
            )


def check_finite(model: str, served: ServedModel) -> None:
    """Refuse weights that hold NaN or infinity; one pass, where they are.

    Raises:
        UnsupportedModelError: names the first such tensor.
    """
    named = [*served.named_weights(), *served.model.named_buffers()]
    floats = [(name, value) for name, value in named if value.is_floating_point() and value.numel()]
    if not floats:
        return
    extremes = [torch.stack(torch.aminmax(value.detach())).double() for _, value in floats]
    finite = torch.isfinite(torch.stack(extremes)).all(-1).tolist()
    bad = [name for (name, _), good in zip(floats, finite, strict=True) if not good]
    if not bad:
        return
    helps = "download the checkpoint again, or have its maker repair it"
    if floats[0][1].dtype == torch.float16:
        helps += "; if it is sound, its values are too large for float16: serve it in bfloat16"
    raise UnsupportedModelError(
        f"{model}: {len(bad)} tensors hold NaN or infinity, the first of them {bad[0]}; {helps}"
    )


def _check_file(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise UnsupportedModelError(
                f"{path}: is a Git LFS pointer and not the weights; run `git lfs pull` there"
            )
    try:
        with safe_open(path, "pt") as tensors:
            types = {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError:
        raise UnsupportedModelError(
            f"{path}: the file is damaged or cut short; download it again"
        ) from None
    for name, kind in types.items():
        if kind not in FLOATS and not name.endswith(HARMLESS):
            raise UnsupportedModelError(
                f"{path}: {name} is of type {kind}, and only weights in float32, float16 or "
                "bfloat16 are served, none that are quantised; use the model's original weights"
            )


def _without_weights(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    gguf = next((name for name in names if name.lower().endswith(".gguf")), None)
    if gguf is not None:
        return gguf_help(folder, gguf)
    if any(name.endswith((".bin", ".pth", ".pt")) for name in names):
        return (
            f"{folder}: has its weights as pickles only, which can run code when they are read; "
            "have transformers save them as safetensors where you trust them: load the model there "
            "and call save_pretrained"
        )
    if any(name.endswith(".safetensors") for name in names):
        return f"{folder}: has neither {SINGLE} nor {INDEX}; download what is missing"
    return f"{folder}: has no weights, {SINGLE} or {INDEX} with its files; finish the download"
