"""Activations of many prompts, kept in a file while they are collected, so that a rerun goes on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from saccade_server.calibration.examples import CalibrationError, Labelled

SECONDS_BETWEEN_SAVES = 15.0


def collect(
    examples: Sequence[Labelled],
    read: Callable[[Labelled], torch.Tensor],
    path: Path,
    facts: Sequence[Any],
    advance: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """What ``read`` gives for each example, stacked: float32 [examples, ...].

    Args:
        path: file of what is done so far; deleted by whoever has written the result.
        facts: what decides the numbers besides the examples, plain JSON.

    Raises:
        CalibrationError: the file belongs to another calibration, or a prompt cannot be read.
    """
    digest = _digest(examples, facts)
    done = list(_load(path, digest)) if path.exists() else []
    for _ in done:
        advance()
    saved = time.monotonic()
    for example in examples[len(done) :]:
        done.append(read(example))
        advance()
        if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
            _save(done, path, digest)
            saved = time.monotonic()
    _save(done, path, digest)
    return torch.stack(done)


def partial_path(out: Path) -> Path:
    """Where the activations for an output are kept."""
    return out.with_name(out.name + ".partial")


def _digest(examples: Sequence[Labelled], facts: Sequence[Any]) -> str:
    digest = hashlib.sha256(json.dumps(list(facts)).encode())
    for example in examples:
        digest.update(json.dumps([example.turns, example.label]).encode())
        for image in example.images:
            digest.update(hashlib.sha256(image.read_bytes()).digest())
    return digest.hexdigest()


def _save(done: Sequence[torch.Tensor], path: Path, digest: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    save_file({"values": torch.stack(list(done))}, temporary, {"calibration": digest})
    temporary.replace(path)


def _load(path: Path, digest: str) -> torch.Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("calibration") == digest:
                values: torch.Tensor = file.get_tensor("values")
                return values
    except (SafetensorError, OSError) as error:
        raise CalibrationError(f"{path}: {error}; delete it") from None
    message = f"{path} is of another calibration; delete it, or choose another --out"
    raise CalibrationError(message)
