"""One frozen configuration of a server process, made once by the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from saccade_kernels.gpu import device as gpu
from saccade_server.api.settings import ApiSettings
from saccade_server.demo import model_path
from saccade_server.engine.config import EngineConfig
from saccade_server.options import DEVICE, DTYPES

DEMO_NAME = "saccade-demo"
"""Name under which the embedded demo model is served."""

GPU_BATCHED_TOKENS = 8192
"""Tokens in one step of a GPU, unless told otherwise: prompts are computed in few, large chunks."""

SELF_TEST_SECONDS = 30.0
GPU_SELF_TEST_SECONDS = 120.0
"""Limit of the self-test, unless told otherwise: on a GPU it compiles kernels, too."""


@dataclass(frozen=True)
class ServerConfig:
    """Where to listen, what to serve, and how.

    ``profiles`` and ``keys`` are files of these; the keys are in ``api`` already.
    ``self_test``: methods are tried on the model at start, and
    those that do not show are not offered; those that ``self_test_seconds`` do not suffice for are
    offered untested; None is the device's usual limit. ``exit_on_hang``: an engine that hangs ends
    the server.
    """

    host: str
    port: int
    engine: EngineConfig
    api: ApiSettings
    profiles: Path | None = None
    keys: Path | None = None
    self_test: bool = True
    self_test_seconds: float | None = None
    exit_on_hang: bool = False

    @property
    def self_test_limit(self) -> float:
        """Seconds for the self-test."""
        if self.self_test_seconds is not None:
            return self.self_test_seconds
        on_gpu = self.engine.device.startswith("cuda")
        return GPU_SELF_TEST_SECONDS if on_gpu else SELF_TEST_SECONDS


def engine_config(
    model: str | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    **limits: int | float | bool | None,
) -> EngineConfig:
    """Engine configuration with ``auto`` resolved; no model means the embedded demo model.

    Raises:
        ValueError: a limit makes no sense, or the device is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    _check_device(device)
    if dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype}: choose {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    chosen = {name: value for name, value in limits.items() if value is not None}
    if device.startswith("cuda"):
        chosen.setdefault("max_batched_tokens", GPU_BATCHED_TOKENS)
    try:
        return msgspec.convert(
            {"model": model or str(model_path()), "device": device, "dtype": dtype, **chosen},
            EngineConfig,
        )
    except msgspec.ValidationError as error:
        raise ValueError(_with_options(str(error))) from None


def _with_options(message: str) -> str:
    """A message about fields of the configuration, in terms of the options that set them."""
    for name in EngineConfig.__struct_fields__:
        message = re.sub(rf"\b{name}\b", f"--{name.replace('_', '-')}", message)
    return message


def _check_device(device: str) -> None:
    if device == "cpu":
        return
    named = DEVICE.fullmatch(device)
    if named is None:
        raise ValueError(f"--device {device}: choose auto, cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise ValueError(f"--device {device}: this machine or this build of torch has no CUDA")
    count = torch.cuda.device_count()
    if int(named[1] or 0) >= count:
        raise ValueError(
            f"--device {device}: of the {count} GPUs here the last is cuda:{count - 1}"
        )
    try:
        gpu.present(int(named[1] or 0))
    except gpu.UnsupportedDeviceError as error:
        raise ValueError(f"--device {device}: {error}") from None


def served_name(model: str | None, name: str | None) -> str:
    """The model's public name: the one given, or the demo's, or the last part of its path."""
    if name:
        return name
    if model is None:
        return DEMO_NAME
    return Path(model).name if Path(model).is_dir() else model
