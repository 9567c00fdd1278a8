"""How large the cache becomes, and what is said when there is no room for it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from saccade_kernels.controls import ControlShape
from saccade_server.engine.config import CPU_CACHE_TOKENS, EngineConfig
from saccade_server.engine.memory import (
    GpuMemoryError,
    bytes_per_token,
    choose_cache_tokens,
    out_of_memory_explained,
    tokens_in,
)
from saccade_server.engine.rules.head_sinks import HeadSinkHandler
from saccade_server.engine.stages import StageVariant
from saccade_server.engine.tables import DeviceTables
from saccade_server.models.family import serve
from saccade_testing import tiny
from saccade_testing.engine import core_with


def test_a_cache_has_whole_pages_and_one_for_padding() -> None:
    assert tokens_in(64 * 100 * 5, 100) == 64 * 4
    assert tokens_in(64 * 100 * 6 - 1, 100) == 64 * 4


def test_no_room_says_what_to_change() -> None:
    with pytest.raises(GpuMemoryError, match="raise --gpu-memory-utilization, or lower"):
        tokens_in(64 * 100 * 2, 100)
    with pytest.raises(GpuMemoryError):
        tokens_in(-5, 100)


def test_a_token_takes_keys_values_and_sink_scores() -> None:
    model = serve(tiny.build("llama"))
    assert bytes_per_token(model) == 4 * (2 * 2 * 16 * 8 + 4)


def test_what_is_said_wins_and_a_cpu_has_a_default() -> None:
    model = serve(tiny.build("llama"))
    said = EngineConfig(model="m", cache_tokens=4096)
    assert choose_cache_tokens(model, said, 512) == 4096
    assert choose_cache_tokens(model, EngineConfig(model="m"), 512) == CPU_CACHE_TOKENS


def test_the_engine_says_how_large_its_cache_is() -> None:
    info = core_with("llama", cache_tokens=None).info
    assert info.cache_tokens == CPU_CACHE_TOKENS
    assert core_with("llama", cache_tokens=256).info.max_model_len == 256


def test_running_out_of_memory_says_what_to_change() -> None:
    with (
        pytest.raises(GpuMemoryError, match="while loading: lower --gpu-memory-utilization"),
        out_of_memory_explained("loading"),
    ):
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_impossible_shares_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="gpu_memory_utilization"):
        EngineConfig(model="m", gpu_memory_utilization=share)


def test_key_classes_of_heads_are_part_of_what_is_measured() -> None:
    """They are made at the start where memory is measured; this device only has shapes."""
    shape, rows = ControlShape(4, 4, 8), {"hidden_size": 8, "per_head_rows": 3}
    tables = DeviceTables(shape, 5, 5, 32, torch.device("meta"), **rows)
    assert tables.tags.per_head is not None
    assert tables.tags.per_head.classes.shape == (3, 4, 4, 32)
    parts: Any = SimpleNamespace(tables=tables, device=torch.device("meta"))
    assert vars(HeadSinkHandler(parts))["tables"].sums.shape == (2 * 4 * 4 * 32,)


def test_masks_are_part_of_what_is_measured() -> None:
    """Buffers are made with the runner, and the largest variants of their stages are run."""
    runner = core_with("llama", padded_decode=True, max_num_seqs=5)._runner
    assert runner._decoder is not None
    assert runner._decoder.outputs.allowed.shape == (6, 4)
    largest = {v for v in runner._decoder.largest if isinstance(v, StageVariant)}
    assert {("masks", 8), ("masked rows", 8)} <= largest
    runner.rehearse()
    assert (runner._decoder.outputs.allowed == -1).all()


@pytest.mark.gpu
def test_the_cache_takes_the_rest_of_its_share() -> None:
    device = torch.device("cuda")
    model = serve(tiny.build("llama", dtype=torch.bfloat16).to(device))
    config = EngineConfig(model="m", device="cuda", gpu_memory_utilization=0.5)
    tokens = choose_cache_tokens(model, config, 512)
    total = torch.cuda.get_device_properties(device).total_memory
    assert 0.2 * total < tokens * bytes_per_token(model) < 0.5 * total
    tiny_share = EngineConfig(model="m", device="cuda", gpu_memory_utilization=1e-6)
    with pytest.raises(GpuMemoryError):
        choose_cache_tokens(model, tiny_share, 512)
