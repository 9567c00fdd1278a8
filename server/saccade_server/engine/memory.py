"""How large the key-value cache may be on a GPU, and what to say when memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from saccade_kernels.batch import PAGE
from saccade_server.engine.config import CPU_CACHE_TOKENS, EngineConfig
from saccade_server.engine.runner import Runner
from saccade_server.engine.warmup import allowing_all, dummy_step, dummy_trace
from saccade_server.models.family import ServedModel

ADVICE = (
    "lower --gpu-memory-utilization (when other programs use the GPU, or large images are encoded),"
    " --cache-tokens, --max-num-seqs, --max-batched-tokens or --max-model-len; or --enforce-eager,"
    " which needs no memory for CUDA graphs"
)


CPU_ADVICE = "lower --cache-tokens, --max-num-seqs, --max-batched-tokens or --max-model-len"
CPU_ALLOCATOR = "DefaultCPUAllocator"
"""What torch's words for a lack of memory on the host name; they have no class of their own."""


class HostMemoryError(ValueError):
    """The machine has too little memory; the message says what to change."""


class GpuMemoryError(ValueError):
    """The GPU has too little memory; the message says what to change."""


@contextmanager
def out_of_memory_explained(doing: str) -> Iterator[None]:
    """Turn torch's error into one that tells the operator what to change."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise GpuMemoryError(f"out of GPU memory while {doing}: {ADVICE}. {error}") from error
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and CPU_ALLOCATOR not in str(error):
            raise
        raise HostMemoryError(f"out of memory while {doing}: {CPU_ADVICE}") from error


def choose_cache_tokens(model: ServedModel, config: EngineConfig, max_model_len: int) -> int:
    """Size of the cache: the one that was asked for, or what fits.

    Raises:
        GpuMemoryError: nothing useful fits.
    """
    if config.cache_tokens is not None:
        return config.cache_tokens
    if model.device.type != "cuda":
        return CPU_CACHE_TOKENS
    with out_of_memory_explained("measuring the largest step"):
        needed = _measure(model, config, max_model_len)
    total = torch.cuda.mem_get_info(model.device)[1]
    room = int(total * config.gpu_memory_utilization) - needed
    return tokens_in(room, bytes_per_token(model))


def bytes_per_token(model: ServedModel) -> int:
    """Of keys, values and sink scores, in all layers."""
    return model.layers * (2 * _vector_bytes(model) + torch.float32.itemsize)


def tokens_in(room: int, size: int) -> int:
    """Tokens of ``size`` bytes each that a cache of whole pages has in ``room`` bytes.

    Raises:
        GpuMemoryError: fewer than two pages.
    """
    pages = room // (PAGE * size) - 1  # page 0 is padding
    if pages < 2:
        raise GpuMemoryError(
            f"{max(room, 0) / 2**30:.2f} GiB are left for the key-value cache after the model and "
            "its largest step: raise --gpu-memory-utilization, or lower --max-num-seqs, "
            "--max-batched-tokens or --max-model-len"
        )
    return pages * PAGE


def _measure(model: ServedModel, config: EngineConfig, max_model_len: int) -> int:
    """Bytes that everything but the cache needs, other programs on the GPU included."""
    device = model.device
    count = config.max_num_seqs
    chunks = dummy_step([min(config.max_batched_tokens // count, max_model_len)] * count)
    pages = sum(len(chunk.sequence.pages) for chunk in chunks)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    # As many tokens and draws as a step can have. The buffers of padded decodes are made too,
    # because they are needed; graphs are not, but what they compute has memory of its own.
    runner = Runner(model, config, max_model_len, pages * PAGE)
    runner.launch(chunks, partial(allowing_all, runner)).wait()
    longest = min(config.max_batched_tokens, max_model_len)
    runner.launch(dummy_step([longest], trace=dummy_trace(runner.tables.shape))).wait()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    runner.rehearse()
    torch.cuda.synchronize(device)
    peak += torch.cuda.max_memory_allocated(device)
    peak -= 2 * model.layers * runner.num_pages * PAGE * _vector_bytes(model)
    free, total = torch.cuda.mem_get_info(device)
    foreign = total - free - torch.cuda.memory_reserved(device)
    del runner
    gc.collect()
    torch.cuda.empty_cache()
    return peak + foreign + config.image_cache_bytes


def _vector_bytes(model: ServedModel) -> int:
    """Of one token's keys, or values, in one layer."""
    return model.kv_heads * model.head_dim * model.dtype.itemsize
