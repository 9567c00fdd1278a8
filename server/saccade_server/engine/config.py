"""Limits of one engine, checked once."""

from __future__ import annotations

import msgspec

from saccade_kernels.batch import PAGE


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is started with; travels to the engine process as JSON.

    ``cache_tokens`` is the size of the key-value cache; ``max_programs`` the number of different
    control programs that may be in flight (a plan needs at most four).
    """

    model: str
    device: str = "cpu"
    dtype: str = "float32"
    max_model_len: int | None = None  # None: the model's own limit
    max_num_seqs: int = 64
    max_batched_tokens: int = 1024
    max_waiting: int = 1024
    max_pixel_bytes: int = 2 * 2**30  # of the distinct images of all open requests
    cache_tokens: int = 65536
    max_programs: int = 64
    image_cache_bytes: int = 256 * 2**20
    prefix_caching: bool = True
    threads: int | None = None  # CPU threads; None: torch's default

    def __post_init__(self) -> None:
        if self.max_batched_tokens < self.max_num_seqs:
            raise ValueError("max_batched_tokens must be at least max_num_seqs")
        if self.cache_tokens < 2 * PAGE:
            raise ValueError(f"cache_tokens must be at least {2 * PAGE}")
        if self.max_programs < 4:
            raise ValueError("max_programs must be at least 4, what one plan may need")
        for name in ("max_num_seqs", "max_waiting", "max_pixel_bytes", "image_cache_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive")

    def context_limit(self, model_limit: int) -> int:
        """Longest sequence: what the model, the user and the cache allow."""
        wanted = self.max_model_len or model_limit
        if wanted > model_limit:
            raise ValueError(f"max_model_len {wanted} exceeds the model's limit of {model_limit}")
        return min(wanted, self.cache_tokens)
