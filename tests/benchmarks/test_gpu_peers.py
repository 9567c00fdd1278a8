"""What others offer computes what it says, and what torch calls its options."""

import pytest
import torch
from gpu import flex, peers
from gpu.peers import Dense, eager, varlen_options
from gpu.problems import VISUAL, VISUAL_SINK, image_tags
from gpu.session import Session
from gpu.shapes import TINY_GQA, TINY_MHA
from torch.nn.attention.flex_attention import flex_attention

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

PROMPT, DECODE = (1, 90, 90), (2, 1, 90)  # sequences, queries, keys
SIZES = pytest.mark.parametrize("size", [PROMPT, DECODE], ids=["prompt", "decode"])
HEADS = pytest.mark.parametrize("heads", [TINY_MHA, TINY_GQA], ids=lambda heads: heads.name)


def made(heads, size) -> Dense:
    torch.manual_seed(3)
    return Dense.make(heads, *size, torch.device("cpu"), torch.float32)


def weights(inputs: Dense, bias: torch.Tensor) -> torch.Tensor:
    """Of the formula, with a bias of each key."""
    group = inputs.query.shape[1] // inputs.key.shape[1]
    scores = inputs.query @ inputs.key.repeat_interleave(group, 1).transpose(2, 3) / 4 + bias
    if inputs.causal:
        scores = scores.masked_fill(torch.ones(scores.shape[2:]).triu(1).bool(), -torch.inf)
    return scores.softmax(-1) @ inputs.value.repeat_interleave(group, 1)


@HEADS
@SIZES
def test_flex_does_what_the_kernels_are_compared_with(heads, size):
    inputs = made(heads, size)
    tags = torch.from_numpy(image_tags(size[2]))
    bias = 0.3 * ((tags == VISUAL) | (tags == VISUAL_SINK))
    wanted = {
        "flex": weights(inputs, torch.zeros(size[2])),
        "flex with a bias": weights(inputs, bias),
        "flex by classes, merged, with VAR": eager(inputs, var=True)(),
    }
    assert set(wanted) == set(flex.FORMS)
    for label, form in flex.FORMS.items():
        found = form(flex_attention, inputs)()
        torch.testing.assert_close(found, wanted[label], rtol=2e-5, atol=2e-5)
    plain, moved = wanted["flex"], wanted["flex by classes, merged, with VAR"]
    assert not torch.allclose(plain, moved, rtol=1e-3), "there is mass to move"


@HEADS
@SIZES
def test_varlen_takes_these_arguments(heads, size):
    """On a CPU it does not run: what it is called with fits, and SDPA stands in for it."""
    inputs = made(heads, size)
    assert peers.HAS_VARLEN
    found = peers.varlen(inputs)()
    torch.testing.assert_close(found, weights(inputs, torch.zeros(size[2])), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("known", "wanted"),
    [
        (("is_causal", "scale"), {"is_causal": True}),
        (("window_size", "scale"), {"window_size": (-1, 0)}),
        (("window_size", "enable_gqa"), {"window_size": (-1, 0), "enable_gqa": True}),
    ],
)
def test_varlen_is_causal_by_whatever_name(known, wanted):
    assert varlen_options(known, causal=True, grouped=True) == wanted
    assert not set(varlen_options(known, causal=False, grouped=False))


def test_a_torch_without_varlen_is_said_to_have_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peers, "HAS_VARLEN", False)
    cell: dict[str, dict[str, str]] = {}
    peers.time_varlen(Session(deadline=0, dry=True), cell, [made(TINY_MHA, DECODE)])
    assert cell["varlen"]["skipped"].endswith("has no varlen attention")
