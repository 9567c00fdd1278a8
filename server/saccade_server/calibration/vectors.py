"""``calibrate vectors``, ``head-vectors`` and ``head-means``: from activations to artifacts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from saccade_server.calibration.collect import collect, partial_path
from saccade_server.calibration.directions import Method, find_direction, projection_std
from saccade_server.calibration.examples import (
    CalibrationError,
    Labelled,
    classes,
    read_examples,
)
from saccade_server.calibration.reading import Reader
from saccade_server.engine.config import EngineConfig
from saccade_server.models.base import ServedModel
from saccade_server.models.family import load_model
from saccade_server.models.fingerprint import fingerprint
from saccade_server.models.prompt import PromptProcessor


@dataclass(frozen=True)
class FoundVector:
    """A direction at one place: a residual, or (layer, head). ``size`` is a typical length there.

    ``sigma``: standard deviation of the activations along it.
    """

    place: tuple[int, ...]
    vector: torch.Tensor
    accuracy: float
    size: float
    sigma: float


class Calibrator:
    """A loaded model and the labelled prompts to run through it."""

    def __init__(self, config: EngineConfig, prompts: Path, console: Console) -> None:
        """Load everything.

        Raises:
            CalibrationError: the prompts cannot be read.
            ValueError: the model cannot be served.
        """
        self.examples = read_examples(prompts)
        dtype, device = getattr(torch, config.dtype), torch.device(config.device)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.model: ServedModel = load_model(config.model, dtype=dtype, device=device)
        self.fingerprint = fingerprint(self.model)
        self._reader = Reader(self.model, PromptProcessor.load(config.model))
        self._console = console

    def vectors(
        self, out: Path, layers: Sequence[int] | None, method: Method, positive: str | None
    ) -> list[FoundVector]:
        """A direction in each residual of ``layers``; None: all but the embeddings and the last.

        Raises:
            CalibrationError: a residual that is not there, or labels of one class only.
        """
        chosen = list(range(1, self.model.layers)) if layers is None else sorted(set(layers))
        for layer in chosen:
            if not 0 <= layer < self.model.layers:
                last = self.model.layers - 1
                raise CalibrationError(f"there is no residual {layer}; choose from 0 to {last}")

        def read(example: Labelled) -> torch.Tensor:
            found = self._reader.read(example, chosen).residuals
            return torch.stack([found[layer] for layer in chosen])

        positives = torch.tensor(classes(self.examples, positive))
        values = self._collect(out, read, ["vectors", chosen])
        return [
            _found((layer,), values[:, at], positives, method) for at, layer in enumerate(chosen)
        ]

    def head_vectors(self, out: Path, method: Method, positive: str | None) -> list[FoundVector]:
        """A direction in each head's output, the one that separates best first.

        Raises:
            CalibrationError: labels of one class only.
        """
        positives = torch.tensor(classes(self.examples, positive))
        values = self._collect(out, lambda example: self._reader.read(example, ()).heads, ["heads"])
        found = [
            _found((layer, head), values[:, layer, head], positives, method)
            for layer in range(values.shape[1])
            for head in range(values.shape[2])
        ]
        return sorted(found, key=lambda item: (-item.accuracy, item.place))

    def head_means(self, out: Path) -> torch.Tensor:
        """Mean output of each head, [layers, heads, head_dim]; every prompt counts the same."""
        read: Callable[[Labelled], torch.Tensor]
        read = lambda example: self._reader.read(example, ()).head_means  # noqa: E731
        return self._collect(out, read, ["means"]).mean(0)

    def _collect(
        self, out: Path, read: Callable[[Labelled], torch.Tensor], facts: list[Any]
    ) -> torch.Tensor:
        with Progress(console=self._console) as progress:
            bar = progress.add_task("prompts", total=len(self.examples))
            facts = [self.fingerprint, *facts]
            path = partial_path(out)
            return collect(self.examples, read, path, facts, lambda: progress.advance(bar))


def _found(
    place: tuple[int, ...], values: torch.Tensor, positive: torch.Tensor, method: Method
) -> FoundVector:
    direction = find_direction(values, positive, method)
    if not math.isfinite(float(direction.vector.norm())) or not direction.vector.any():
        raise CalibrationError(f"both classes have the same mean at {place}; nothing to find there")
    sigma = projection_std(values, direction.vector)
    size = float(values.norm(dim=-1).mean())
    return FoundVector(place, direction.vector, direction.accuracy, size, sigma)
