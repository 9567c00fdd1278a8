"""Sink dimensions: looked up by shape, measured otherwise, none where there are none."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from saccade_kernels.sinks import default_threshold
from saccade_server.models.family import ServedModel, serve
from saccade_server.models.sinks import find_sink_dims, strongest_dims

FAMILIES = ["llama", "qwen3", "llava", "qwen2_5_vl", "qwen3_vl"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_model_has_none(family: str, tiny_model: Callable[..., Any]) -> None:
    assert find_sink_dims(serve(tiny_model(family))) == ()


@pytest.mark.parametrize("family", ["llama", "llava"])
def test_planted_ones_are_found_strongest_first(
    family: str, tiny_model: Callable[..., Any]
) -> None:
    served = serve(tiny_model(family))
    weights = served.model.get_input_embeddings().weight
    weights[served.bos_token_id, [37, 12]] += torch.tensor([-20.0, 30.0], dtype=torch.float64)
    assert find_sink_dims(served) == (12, 37)


def test_at_most_three_and_only_above_the_threshold() -> None:
    residuals = 0.3 * torch.randn(3, 20, 1024)
    residuals[1, :, [10, 20, 30, 40, 50]] = torch.tensor([60.0, -90.0, 70.0, 80.0, 8.0])
    assert strongest_dims(residuals, default_threshold(1024)) == (20, 40, 30)


def test_a_dimension_must_be_massive_in_most_prompts() -> None:
    residuals = 0.3 * torch.randn(3, 20, 1024)
    residuals[:, :9, 10] = 90
    assert strongest_dims(residuals, default_threshold(1024)) == ()


@pytest.mark.parametrize(
    ("sizes", "dims"),
    [
        ((4096, 32, 32, 32, 32000), (1415, 2533)),
        ((4096, 32, 32, 32, 32064), (1415, 2533)),
        ((5120, 40, 40, 40, 32000), (2100, 4743)),
    ],
)
def test_published_ones_need_no_measurement(sizes: Any, dims: Any) -> None:
    assert find_sink_dims(Shape("llava", *sizes)) == dims


def test_another_model_of_nearly_that_shape_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = lambda *arguments: torch.zeros(1, 1, 4096)
    monkeypatch.setattr("saccade_server.models.sinks.first_residuals", nothing)
    mistral = (4096, 32, 32, 8, 32000)
    assert find_sink_dims(Shape("llama", *mistral)) == ()
    assert find_sink_dims(Shape("qwen3", 4096, 32, 32, 32, 32000)) == ()


class Shape(ServedModel):
    """A model of which only the sizes are known."""

    def __init__(self, family: str, *sizes: int) -> None:
        self.family = family  # type: ignore[misc]
        self.hidden_size, self.layers, self.heads, self.kv_heads, self.vocab_size = sizes
