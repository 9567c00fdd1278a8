"""Files of steering vectors as other programs write them, by the libraries that they use."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray


def gguf_bytes(
    folder: Path,
    directions: Mapping[int, NDArray[Any]],
    architecture: str = "controlvector",
    **fields: str,
) -> bytes:
    """What repeng's ``ControlVector.export_gguf`` writes, and EasySteer's with its own fields."""
    path = folder / "vector.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(directions))
    for name, text in fields.items():
        writer.add_string(f"controlvector.{name}", text)
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", direction)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def torch_bytes(value: object) -> bytes:
    """What ``torch.save`` writes."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def vectors(layers: tuple[int, ...], hidden: int, seed: int = 0) -> dict[int, NDArray[np.float32]]:
    """A vector for each layer."""
    rng = np.random.default_rng(seed)
    return {layer: rng.normal(size=hidden).astype(np.float32) for layer in layers}
