"""The logit lens, entropies and projections equal formulas on transformers' modules in float64."""

import copy
from typing import Any

import pytest
import torch

from saccade_server.models import lens
from saccade_server.models.family import serve
from saccade_testing import tiny


@pytest.fixture
def family(decoder_family: str) -> str:
    """Every family that has a decoder of its own."""
    return decoder_family


def on_the_way(model: Any, tokens: list[int]) -> list[torch.Tensor]:
    """Residuals [rows, hidden] entering each layer, and behind the last one, before its norm."""
    found: list[torch.Tensor] = []

    def hook(module: Any, args: Any, kwargs: Any) -> None:
        found.append((args[0] if args else kwargs["hidden_states"])[0])

    decoder = model.get_decoder()
    modules = (*decoder.layers, decoder.norm)
    hooks = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in modules]
    with torch.no_grad():
        model(input_ids=torch.tensor([tokens]), use_cache=False)
    for handle in hooks:
        handle.remove()
    return found


def test_tokens_and_entropies_of_every_layer(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts of seven rows, the last of which is smaller."""
    monkeypatch.setattr(lens, "AT_ONCE", 7)
    model = tiny.build(family)
    served = serve(copy.deepcopy(model))
    tokens = list(tiny.prompt(family, images=0).tokens)
    residuals = on_the_way(model, tokens)
    assert len(residuals) == served.layers + 1
    norm, head = model.get_decoder().norm, model.get_output_embeddings()
    for residual in residuals:
        with torch.inference_mode():
            logprobs = head(norm(residual)).log_softmax(-1)
            found, logs = lens.early_tokens(served, residual, 5)
            entropies = lens.entropies(served, residual)
        assert found.dtype == torch.int32
        order = logprobs.sort(-1, descending=True)
        assert torch.equal(found.long(), order.indices[:, :5])
        torch.testing.assert_close(logs, order.values[:, :5], rtol=0, atol=1e-10)
        wanted = -(logprobs.exp() * logprobs).sum(-1)
        torch.testing.assert_close(entropies, wanted, rtol=0, atol=1e-10)
        assert wanted.std() > 1e-3


def test_the_last_one_is_the_models_own_distribution() -> None:
    model = tiny.build("gemma3_text")
    served = serve(copy.deepcopy(model))
    tokens = list(tiny.prompt("gemma3_text").tokens)
    (*_, last) = on_the_way(model, tokens)
    with torch.inference_mode():
        own = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].log_softmax(-1)
        found, logs = lens.early_tokens(served, last, 1)
    assert torch.equal(found[:, 0].long(), own.argmax(-1))
    torch.testing.assert_close(logs[:, 0], own.amax(-1), rtol=0, atol=1e-10)


def test_a_token_that_cannot_be_adds_nothing_to_an_entropy() -> None:
    logprobs = torch.tensor([[0.5, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0]]).log()
    wanted = torch.tensor([1.5 * torch.log(torch.tensor(2.0)), 0.0])
    torch.testing.assert_close(lens.entropy(logprobs), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_projections_are_summed_wider_than_half(dtype: torch.dtype) -> None:
    """4096 products of which every second nearly cancels the one before."""
    hidden = torch.randn(3, 4096).to(dtype)
    hidden[:, 1::2] = -hidden[:, ::2] * 0.99
    directions = torch.randn(5, 1).expand(5, 4096).float()
    found = lens.projections(hidden, directions)
    wanted = hidden.double() @ directions.double().T
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert found.dtype == wide
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)
