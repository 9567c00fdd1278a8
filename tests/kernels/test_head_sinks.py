"""Which keys are sinks of a head, against the definition one key at a time."""

import itertools

import numpy as np
import pytest
import torch

from saccade_kernels.gpu.head_sinks import KEY_BLOCK, settle_head_sinks
from saccade_kernels.head_sinks import (
    HeadSinkCriterion,
    SumsSoFar,
    mean_received,
    settle_classes,
)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("first_found", [False, True])
@pytest.mark.parametrize("exempt", [False, True])
@pytest.mark.parametrize("least", [1, 4])
def test_the_definition(relative, first_found, exempt, least):
    scores = 2 * torch.randn(3, 11, 11, dtype=torch.float64)
    attention = scores.masked_fill(torch.ones(11, 11).triu(1).bool(), -torch.inf).softmax(-1)
    criterion = HeadSinkCriterion(1.5 if relative else 0.12, relative, first_found, exempt)
    found = criterion.classes(attention.sum(1), least)
    for head in range(3):
        hits = []
        for k in range(11):
            rows = attention[head, k:, k]
            if float(rows.mean()) > (1.5 / 11 if relative else 0.12) and len(rows) >= least:
                hits.append(k)
        sinks = hits[1:] if first_found else [k for k in hits if k]
        wanted = np.isin(np.arange(11), sinks).astype(int)
        if exempt:
            wanted[0] = 2
        assert found[head].tolist() == wanted.tolist()


def test_the_worked_example():
    rows = [
        [1, 0, 0, 0, 0, 0],
        [0.7, 0.3, 0, 0, 0, 0],
        [0.5, 0.1, 0.4, 0, 0, 0],
        [0.5, 0.05, 0.35, 0.1, 0, 0],
        [0.47, 0.05, 0.33, 0.07, 0.08, 0],
        [0.50, 0.05, 0.25, 0.05, 0.08, 0.07],
    ]
    sums = torch.tensor(rows, dtype=torch.float64).sum(0, keepdim=True)
    wanted = [0.6116666667, 0.11, 0.3325, 0.0733333333, 0.08, 0.07]
    np.testing.assert_allclose(mean_received(sums)[0], wanted, rtol=0, atol=5e-11)
    for key, mean in enumerate(wanted[1:], start=1):
        found = [HeadSinkCriterion(mean + margin).classes(sums)[0, key] for margin in (-1e-9, 1e-9)]
        assert found == [1, 0], "the means are what the threshold is compared with"


def test_one_row_alone():
    row = torch.tensor([[0.5, 0.2, 0.05, 0.25], [0.05, 0.5, 0.4, 0.05]])
    assert HeadSinkCriterion(0.1).classes_of_row(row).tolist() == [[0, 1, 0, 1], [0, 1, 1, 0]]
    first = HeadSinkCriterion(0.1, first_found=True)
    assert first.classes_of_row(row).tolist() == [[0, 1, 0, 1], [0, 0, 1, 0]]


def test_one_key():
    assert HeadSinkCriterion(0.1).classes(torch.ones(2, 1)).tolist() == [[0], [0]]


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("end", [1, 7, 2 * KEY_BLOCK + 9])
@pytest.mark.parametrize("how", ["alone", "counted", "known"])
def test_triton_settles_as_the_reference(how, end):
    """In the heads listed and the keys that exist alone; memory beside them is poison."""
    heads = torch.tensor([5, 0, 3])
    for relative, first, exempt in itertools.product((False, True), repeat=3):
        threshold = 0.4 if not relative else 0.4 * end
        criterion = HeadSinkCriterion(threshold, relative, first, exempt)
        weights = torch.full((6, end + 3), torch.nan)
        weights[heads, :end] = torch.rand(3, end) * (end if how != "alone" else 1) * 0.5
        values = torch.full((3, end + 70), torch.nan)
        values[:, :end] = torch.rand(3, end) * end * 0.2
        found = []
        for device, settle in (("cpu", settle_classes), (DEVICE, settle_head_sinks)):
            sums = None
            if how != "alone":
                kept = values.to(device, copy=True)
                sums = SumsSoFar(kept, how == "counted", min(4, end))
            table = torch.full((6, 2, end + 5), 99, dtype=torch.uint8, device=device)[:, 1]
            settle(weights.to(device), heads.to(device), end, criterion, sums, table)
            found.append((table.cpu(), None if sums is None else sums.values.cpu()))
        (wanted, wanted_sums), (table, sums_) = found
        assert torch.equal(table, wanted)
        assert (table != 99).sum() == 3 * end
        if wanted_sums is not None:
            assert torch.equal(sums_.nan_to_num(), wanted_sums.nan_to_num())
            assert torch.equal(
                wanted_sums.nan_to_num() == values.nan_to_num(), values.isnan() | (how == "known")
            )
        if end > 7:
            assert {*table[heads, 1:end].unique().tolist()} == {0, 1}


@pytest.mark.gpu
def test_a_chip_settles_the_same():
    test_triton_settles_as_the_reference("counted", 2 * KEY_BLOCK + 9)
