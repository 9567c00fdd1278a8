"""Every way a batch can be wrong is named; a right one passes."""

from dataclasses import replace

import pytest
import torch

from saccade_kernels.batch import Prefill, Run
from saccade_kernels.controls import Edit


@pytest.fixture
def batch(make_case):
    return make_case(queries=(1, 1, 5), contexts=(65, 7, 64)).batch


def test_a_right_batch_passes(make_case):
    case = make_case(queries=(1, 1, 5), contexts=(65, 7, 64))
    case.batch.validate()
    case.plain().validate()


def test_a_slot_without_keys_is_padding(make_case):
    make_case(queries=(1, 1), contexts=(3, 0)).batch.validate()


def test_edits_are_per_layer_and_none_without_controls(batch):
    assert replace(batch, edits=(Edit.MASS, Edit.NONE)).edit(0) == Edit.MASS
    assert replace(batch, edits=()).edit(1) == Edit.NONE


def test_a_prefill_has_the_edits_of_its_own_runs(batch):
    """Two decodes, one prefill: what the decodes do is none of its business."""
    first, second = (Run(2, 0, ()), Run(3, 1, (Edit.NONE, Edit.MASS)))
    prefill = Prefill(5, 64, (first, second, replace(second, edits=(Edit.HEAD, Edit.NONE))))
    mixed = replace(batch, edits=(Edit.SCORE, Edit.NONE), prefills=(prefill,))
    assert [mixed.edit(0, seq) for seq in range(3)] == [Edit.SCORE, Edit.SCORE, Edit.HEAD]
    assert mixed.edit(1, 2) == Edit.MASS


@pytest.mark.parametrize(
    "name",
    ["slots", "query_starts", "context_lens", "control_rows", "tag_rows", "page_table"],
)
def test_a_wrong_dtype_is_named(batch, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        replace(batch, **{name: getattr(batch, name).to(torch.int16)}).validate()


@pytest.mark.parametrize("name", ["query_starts", "control_rows", "tag_rows", "page_table"])
def test_a_wrong_length_is_named(batch, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        replace(batch, **{name: getattr(batch, name)[1:]}).validate()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(query_starts=[1, 1, 2, 7]), "query_starts must run from 0"),
        (dict(query_starts=[0, 1, 2, 6]), "query_starts must run from 0"),
        (dict(query_starts=[0, 2, 3, 7]), "the first num_decodes sequences"),
        (dict(num_decodes=3), "the first num_decodes sequences"),
        (dict(context_lens=[65, 7, 4]), "more queries than keys"),
        (dict(prefills=()), "prefills do not have the lengths"),
        (dict(prefills=(Prefill(5, 63, ()),)), "prefills do not have the lengths"),
        (dict(prefills=(Prefill(5, 64, (Run(5, 99),)),)), "do not follow control_rows"),
        (dict(prefills=(Prefill(5, 64, (Run(4, 0),)),)), "do not follow control_rows"),
        (dict(classes=0), "classes must be 1 to 8"),
        (dict(classes=9), "classes must be 1 to 8"),
        (dict(max_context=64), "max_context is less"),
        (dict(page_table=[[1], [2], [3]]), "too narrow"),
        (dict(controls=None), "without control and tag tables"),
        (dict(tags=None), "without control and tag tables"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_contradiction_is_named(batch, changes, message):
    wrong = {
        name: torch.tensor(value, dtype=torch.int32) if isinstance(value, list) else value
        for name, value in changes.items()
    }
    with pytest.raises(ValueError, match=message):
        replace(batch, **wrong).validate()
