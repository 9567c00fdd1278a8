"""Programs on the host and the tables on the device."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade_kernels import edits
from saccade_kernels.controls import CLASSES, GATES, KEY_WEIGHTS, ControlShape, Edit, Program
from saccade_kernels.tables import ControlTables, TagTable
from saccade_testing.tables import edit_masses, write_row

SHAPE = ControlShape(layers=3, heads=2, head_dim=4)


def test_the_identity_program_edits_nothing():
    program = Program.identity(SHAPE)
    assert not program.head_edits().any()


@pytest.mark.parametrize(
    ("name", "index", "value", "edit"),
    [
        ("scale", (1, 0, 2), 0.5, Edit.SCORE),
        ("absolute", (1, 1, 0), 0.5, Edit.SCORE),
        ("bias", (1, 0, 7), -1.0, Edit.SCORE),
        ("weight", (1, 1, 2), 0.1, Edit.SCORE),
        ("transform", (1, 0, 3, 4), 0.1, Edit.MASS),
        ("transform", (1, 0, 3, 3), 0.9, Edit.MASS),
        ("gain", (1, 1), 0.0, Edit.HEAD),
        ("shift", (1, 0, 3), 2.0, Edit.HEAD),
        ("gate_weight", (1, 0, 0, 2), 1.0, Edit.NONE),
        ("gate_threshold", (1, 0, 1), 0.3, Edit.NONE),
    ],
)
def test_one_value_makes_one_edit_of_one_layer(name, index, value, edit):
    program = Program.identity(SHAPE)
    getattr(program, name)[index] = value
    wanted = np.zeros((3, 2), np.uint8)
    wanted[index[:2]] = edit
    np.testing.assert_array_equal(program.head_edits(), wanted)


def test_edits_of_a_layer_add_up():
    program = Program.identity(SHAPE)
    program.bias[2, 0, 0], program.gain[2, 1], program.transform[2, 1, 0, 0] = 1, 2, 0
    assert np.bitwise_or.reduce(program.head_edits()[2]) == Edit.SCORE | Edit.MASS | Edit.HEAD


def test_fresh_tables_hold_the_identity_in_every_row():
    tables = ControlTables.allocate(4, SHAPE)
    identity = Program.identity(SHAPE)
    for field in fields(identity):
        expected = torch.from_numpy(getattr(identity, field.name))
        tensor = getattr(tables, field.name)
        assert tensor.is_contiguous()
        assert tensor.shape == (4, *expected.shape)
        assert all(torch.equal(tensor[row], expected) for row in range(4))
    assert tables.gate_weight.shape == (4, 3, 2, GATES, CLASSES)
    assert tables.edits.shape == (4, 3, 2)
    assert not tables.edits.any()


def test_a_row_is_written_in_place_and_alone(make_program):
    tables, fresh = ControlTables.allocate(4, SHAPE), ControlTables.allocate(4, SHAPE)
    before = {field.name: getattr(tables, field.name).data_ptr() for field in fields(tables)}
    program = make_program(SHAPE, CLASSES, np.random.default_rng(0))
    write_row(tables, 2, program)
    for field in fields(tables):
        tensor, untouched = getattr(tables, field.name), getattr(fresh, field.name)
        assert tensor.data_ptr() == before[field.name]
        assert all(torch.equal(tensor[row], untouched[row]) for row in (0, 1, 3))
        if field.name != "edits":
            assert torch.equal(tensor[2], torch.from_numpy(getattr(program, field.name)))
    assert tables.edits[2].all()
    write_row(tables, 2, Program.identity(SHAPE))
    assert not tables.edits.any()


def test_a_fresh_tag_table_is_untagged():
    table = TagTable.allocate(5, SHAPE, max_len=70)
    assert (table.tags.shape, table.tags.dtype) == ((5, 3, 70), torch.uint8)
    assert (table.weights.shape, table.weights.dtype) == ((5, KEY_WEIGHTS, 70), torch.float32)
    assert (table.moved.shape, table.moved.dtype) == ((5, 3, 2), torch.int32)
    assert not table.tags.any()
    assert not table.weights.any()
    assert not table.moved.any()


def tables_of(program: Program) -> tuple[ControlTables, torch.Tensor]:
    tables = ControlTables.allocate(2, ControlShape(*program.gain.shape, 1))
    write_row(tables, 1, program)
    return tables, torch.ones(1, 1, dtype=torch.int32)


@given(st.integers(0, 2**32 - 1), st.integers(0, CLASSES), st.booleans())
@settings(deadline=None, max_examples=50)
def test_columns_that_sum_to_1_conserve_the_mass(seed, empty, sparse):
    rng = np.random.default_rng(seed)
    program = Program.identity(ControlShape(1, 1, 1))
    matrix = rng.random((CLASSES, CLASSES)) * (
        rng.random((CLASSES, CLASSES)) < 0.3 if sparse else 1
    )
    matrix += np.eye(CLASSES) * (matrix.sum(0) == 0)
    program.transform[:] = matrix / matrix.sum(0)
    mass = torch.from_numpy(rng.random(CLASSES))
    mass[rng.permutation(CLASSES)[:empty]] = 0
    keys = torch.arange(CLASSES)[None]  # one of each class
    after, _ = edit_masses(mass.view(1, 1, 1, -1), *tables_of(program), keys, 0)
    torch.testing.assert_close(after.sum(), mass.sum(), rtol=1e-6, atol=0)
    assert (after >= 0).all()
    assert (after.flatten()[mass == 0] == 0).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, CLASSES))
@settings(deadline=None, max_examples=30)
def test_a_log_bias_is_a_renormalised_factor_on_the_mass(seed, classes):
    """softmax(z + log g_c) = A g_c / (sum of A g): the score edit that a constant factor is."""
    rng = np.random.default_rng(seed)
    factor = rng.uniform(0.1, 5, classes)
    scores = torch.from_numpy(rng.normal(size=(1, 1, 1, 20)))
    tags = torch.from_numpy(rng.integers(0, classes, (1, 20)))
    identity = Program.identity(ControlShape(1, 1, 1))
    biased = replace(identity, bias=identity.bias.copy())
    biased.bias[..., :classes] = np.log(factor)
    scaled = replace(identity, transform=identity.transform.copy())
    scaled.transform[..., range(classes), range(classes)] = factor
    controls, rows = tables_of(biased)
    by_score = edits.edit_scores(
        scores, controls, rows, tags, torch.zeros(1, KEY_WEIGHTS, 20), 0
    ).softmax(-1)
    by_mass, _ = edit_masses(scores.softmax(-1), *tables_of(scaled), tags, 0)
    torch.testing.assert_close(by_score, by_mass / by_mass.sum(), rtol=1e-6, atol=1e-12)
