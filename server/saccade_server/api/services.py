"""What the routes work with, made once for the application."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from saccade_interventions.context import ModelFacts
from saccade_interventions.registry import Registry
from saccade_server.api.errors import NotFound, bounded
from saccade_server.api.fetch import ImageFetcher
from saccade_server.api.lifecycle import Lifecycle
from saccade_server.api.settings import ApiSettings
from saccade_server.engine.client import EngineClient
from saccade_server.models.prompt import PromptProcessor

Result = TypeVar("Result")


@dataclass(frozen=True)
class Services:
    """The engine and everything that stands before it."""

    engine: EngineClient
    prompts: PromptProcessor
    registry: Registry
    settings: ApiSettings
    fetcher: ImageFetcher
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    workers: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        # Not asyncio's own pool: whatever else runs there would wait behind images and prompts.
        workers = ThreadPoolExecutor(self.settings.prompt_workers, "saccade-prompt")
        object.__setattr__(self, "workers", workers)

    async def in_worker(self, work: Callable[[], Result]) -> Result:
        """Run CPU work off the event loop, a bounded number at a time.

        A thread cannot be stopped: when the client leaves, work that has begun goes on and keeps
        its worker. Otherwise clients that leave at once could start any number of them.
        """
        return await asyncio.get_running_loop().run_in_executor(self.workers, work)

    def close(self) -> None:
        """End what is still being generated, and the threads once they are idle."""
        self.lifecycle.stop()
        self.workers.shutdown(wait=False, cancel_futures=True)
        self.fetcher.close()

    def check_model(self, name: str | None) -> None:
        """Refuse any name but the served one; no name means the only model there is."""
        if name not in (None, self.settings.served_model_name):
            message = f"The model {bounded(str(name), 100)!r} is not served here."
            raise NotFound(message, code="model_not_found", param="model")

    @property
    def room(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return min(self.engine.info.max_model_len, self.engine.info.cache_tokens)

    @property
    def facts(self) -> ModelFacts:
        """What interventions may know of the model."""
        info = self.engine.info
        return ModelFacts(
            layers=info.layers,
            heads=info.heads,
            kv_heads=info.kv_heads,
            head_dim=info.head_dim,
            hidden_size=info.hidden_size,
            sink_dims=info.sink_dims,
            accepts_images=info.accepts_images,
        )
