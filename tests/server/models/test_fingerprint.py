import copy
from typing import Any

import pytest
import torch

from saccade_server.models.family import serve
from saccade_server.models.fingerprint import fingerprint
from saccade_testing import tiny


def of(model: Any) -> str:
    return fingerprint(serve(copy.deepcopy(model)))


def test_every_model_has_its_own() -> None:
    found = {of(tiny.build(family, seed)) for family in tiny.FAMILIES for seed in (0, 1)}
    assert len(found) == 2 * len(tiny.FAMILIES)
    assert all(name.startswith("sha256:") and len(name) == 71 for name in found)


def test_the_dtype_served_does_not_matter() -> None:
    checkpoint = tiny.build("qwen3", dtype=torch.float32)
    wanted = of(checkpoint)
    assert of(tiny.build("qwen3", dtype=torch.float32)) == wanted
    assert of(checkpoint.to(torch.bfloat16)) == wanted


@pytest.mark.parametrize("family", ["llama", "qwen3_vl"])
def test_a_little_training_changes_it(family: str) -> None:
    model = tiny.build(family)
    before = of(model)
    weights = dict(model.named_parameters())
    name = next(name for name in weights if name.endswith("layers.3.mlp.down_proj.weight"))
    with torch.no_grad():
        weights[name].mul_(1.01)
    assert of(model) != before


def test_names_and_order_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Artifacts outlive the names that a library gives to modules."""
    model = serve(tiny.build("llama"))
    wanted = fingerprint(model)
    weights = [(f"w{i}", weight) for i, (_, weight) in enumerate(model.named_weights())]
    monkeypatch.setattr(model, "named_weights", lambda: reversed(weights))
    assert fingerprint(model) == wanted


@pytest.mark.parametrize("family", ["llama", "qwen2_5_vl", "qwen3_vl"])
def test_it_is_taken_of_the_checkpoints_weights(family: str) -> None:
    """Of every one, by its name, whatever is merged to serve them: artifacts outlive that too."""
    model = tiny.build(family)
    wanted = {name: weight.clone() for name, weight in model.named_parameters()}
    found = dict(serve(model).named_weights())
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
