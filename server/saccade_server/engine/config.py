"""Limits of one engine, checked once."""

from __future__ import annotations

import msgspec
import torch

from saccade_kernels.batch import PAGE

CPU_CACHE_TOKENS = 65536
"""Size of the cache where memory is shared with everything else, unless told otherwise."""


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is started with; travels to the engine process as JSON.

    ``cache_tokens`` is the size of the key-value cache; None: on a GPU what is left of
    ``gpu_memory_utilization`` of its memory, else :data:`CPU_CACHE_TOKENS`. ``max_programs`` is the
    number of different control programs that may be in flight (a plan needs at most four), and
    ``max_per_head_classes`` of sequences in flight that have key classes of single heads: each
    takes five bytes per layer, head and position, on a GPU from the start.

    ``overlap`` prepares a step while the one before it runs; ``padded_decode`` runs decodes at
    fixed sizes in fixed buffers, captured in CUDA graphs where there is CUDA. None: on a GPU only.

    ``batch_invariant``: a request's tokens and log-probabilities do not depend, bit for bit, on
    what runs beside it, on how its prompt is cut, on preemption, or on cached pages.
    """

    model: str
    device: str = "cpu"
    dtype: str = "float32"
    max_model_len: int | None = None  # None: the model's own limit
    max_num_seqs: int = 64
    max_batched_tokens: int = 1024
    max_waiting: int = 1024
    max_pixel_bytes: int = 2 * 2**30  # of the distinct images of all open requests
    cache_tokens: int | None = None
    gpu_memory_utilization: float = 0.9
    enforce_eager: bool = False  # no CUDA graphs
    overlap: bool | None = None
    padded_decode: bool | None = None
    max_programs: int = 64
    max_per_head_classes: int = 8
    image_cache_bytes: int = 256 * 2**20
    prefix_caching: bool = True
    batch_invariant: bool = False
    threads: int | None = None  # CPU threads; None: torch's default

    def __post_init__(self) -> None:
        if self.max_batched_tokens < self.max_num_seqs:
            raise ValueError("max_batched_tokens must be at least max_num_seqs")
        if self.cache_tokens is not None and self.cache_tokens < 2 * PAGE:
            raise ValueError(f"cache_tokens must be at least {2 * PAGE}")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError("gpu_memory_utilization must be above 0 and at most 1")
        if self.max_programs < 4:
            raise ValueError("max_programs must be at least 4, what one plan may need")
        names = ("max_num_seqs", "max_waiting", "max_pixel_bytes", "image_cache_bytes")
        for name in (*names, "max_per_head_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive")

    def context_limit(self, model_limit: int) -> int:
        """Longest sequence: what the model, the user and the cache, if its size is known, allow."""
        wanted = self.max_model_len or model_limit
        if wanted > model_limit:
            raise ValueError(f"max_model_len {wanted} exceeds the model's limit of {model_limit}")
        return wanted if self.cache_tokens is None else min(wanted, self.cache_tokens)

    def overlaps(self, device: torch.device) -> bool:
        """True if a step is prepared while the one before it runs."""
        return device.type == "cuda" if self.overlap is None else self.overlap

    def pads_decodes(self, device: torch.device) -> bool:
        """True if decodes run at fixed sizes in fixed buffers."""
        if self.padded_decode is None:
            return device.type == "cuda" and not self.enforce_eager
        return self.padded_decode
