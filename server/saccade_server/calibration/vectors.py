"""``calibrate vectors``, ``head-vectors`` and ``head-means``: from activations to artifacts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from saccade_interventions.vectors import RESIDUAL, Site, kind_of, place_of
from saccade_server import __version__
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
class Collected:
    """Activations of all prompts, float32 [prompts, places, size], and the prompts' classes."""

    places: Sequence[tuple[int, ...]]
    values: torch.Tensor
    positives: torch.Tensor  # bool [prompts]

    def of(self, prompts: torch.Tensor) -> Collected:
        """The same of some prompts, bool [prompts]."""
        return Collected(self.places, self.values[prompts], self.positives[prompts])

    def directions(self, method: Method) -> list[FoundVector | None]:
        """A direction at every place; None where both classes have the same mean."""
        return [
            _found(place, self.values[:, at], self.positives, method)
            for at, place in enumerate(self.places)
        ]


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

    @property
    def separation(self) -> tuple[float, float]:
        """How well it tells the classes apart: first on prompts that it was not found on."""
        accuracy = 0.0 if math.isnan(self.accuracy) else self.accuracy
        return accuracy, float(self.vector.norm()) / max(self.sigma, 1e-12)


class Calibrator:
    """A loaded model and the labelled prompts to run through it."""

    def __init__(self, config: EngineConfig, prompts: Path, console: Console) -> None:
        """Load everything.

        Raises:
            CalibrationError: the prompts cannot be read.
            ValueError: the model cannot be served.
        """
        self.examples = read_examples(prompts)
        self._dtype = config.dtype
        dtype, device = getattr(torch, config.dtype), torch.device(config.device)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.model: ServedModel = load_model(config.model, dtype=dtype, device=device)
        self.fingerprint = fingerprint(self.model)
        self.config = config
        self.prompts = PromptProcessor.load(config.model)
        self._reader = Reader(self.model, self.prompts)
        self._console = console

    def at_site(
        self, out: Path, site: Site, layers: Sequence[int] | None, positive: str | None
    ) -> Collected:
        """What a site of ``layers`` holds; None: all, of residuals but the embeddings and the last.

        Raises:
            CalibrationError: a layer that is not there, or labels of one class only.
        """
        first = 1 if site == RESIDUAL else 0
        chosen = list(range(first, self.model.layers)) if layers is None else sorted(set(layers))
        for layer in chosen:
            if not 0 <= layer < self.model.layers:
                what = "residual" if site == RESIDUAL else "layer"
                last = self.model.layers - 1
                raise CalibrationError(f"there is no {what} {layer}; choose from 0 to {last}")

        def read(example: Labelled) -> torch.Tensor:
            found = self._reader.read(example, chosen, kind_of(site)).at_site
            return torch.stack([found[layer] for layer in chosen])

        positives = torch.tensor(classes(self.examples, positive))
        facts = ["vectors", chosen] if site == RESIDUAL else ["vectors", site, chosen]
        values = self._collect(out, read, facts)
        return Collected([(layer,) for layer in chosen], values, positives)

    def heads(self, out: Path, positive: str | None) -> Collected:
        """The outputs of all heads.

        Raises:
            CalibrationError: fewer than two examples of a class, without which no accuracy is
                held out.
        """
        positives = torch.tensor(classes(self.examples, positive, at_least=2))
        values = self._collect(out, lambda example: self._reader.read(example, ()).heads, ["heads"])
        places = list(itertools.product(range(values.shape[1]), range(values.shape[2])))
        return Collected(places, values.flatten(1, 2), positives)

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
            facts = [__version__, self.fingerprint, self._dtype, *facts]
            path = partial_path(out)
            return collect(self.examples, read, path, facts, lambda: progress.advance(bar))


def in_layers(collected: Collected, site: Site, method: Method) -> list[FoundVector]:
    """A direction at a site of each layer.

    Raises:
        CalibrationError: one of them does not tell the classes apart.
    """
    found = []
    for (layer,), item in zip(collected.places, collected.directions(method), strict=True):
        if item is None:
            message = f"both classes have the same mean in {place_of(site, layer)}; leave it out"
            raise CalibrationError(message)
        found.append(item)
    return found


def in_heads(collected: Collected, method: Method) -> list[FoundVector]:
    """A direction in each head's output, the one that separates best first.

    Raises:
        CalibrationError: no head tells the classes apart.
    """
    found = [item for item in collected.directions(method) if item is not None]
    if not found:
        raise CalibrationError("both classes have the same mean in every head")
    return sorted(found, key=lambda item: (-item.accuracy, item.place))


def _found(
    place: tuple[int, ...], values: torch.Tensor, positive: torch.Tensor, method: Method
) -> FoundVector | None:
    """None: there is no direction, since both classes have the same mean."""
    direction = find_direction(values, positive, method)
    if not math.isfinite(float(direction.vector.norm())) or not direction.vector.any():
        return None
    sigma = projection_std(values, direction.vector)
    size = float(values.norm(dim=-1).mean())
    return FoundVector(place, direction.vector, direction.accuracy, size, sigma)
