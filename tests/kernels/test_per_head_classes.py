"""Classes of single heads in the reference, against the formula one row and head at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from saccade_kernels import gradients, reference
from saccade_kernels.batch import Emission
from saccade_kernels.controls import CLASSES, NEVER_ATTEND, ControlShape, Edit, Program


def literal(case, layer, row, seq, head):
    """Edited attention of one query row and head over the keys it sees, and its class masses."""
    _, tables = case.tables
    starts = case.batch.query_starts.tolist()
    keys = case.keys[seq].double()
    position = len(keys) - starts[seq + 1] + row
    tag_row = int(case.batch.tag_rows[seq])
    tags = tables.tags[tag_row, layer, : position + 1].long()
    seen = [j for j in range(position + 1) if tags[j] != NEVER_ATTEND]
    own_row = int(tables.per_head.rows[tag_row])
    classes = tags
    if tables.per_head.heads[own_row, layer, head]:
        classes = tables.per_head.classes[own_row, layer, head].long()
    program = case.programs[int(case.batch.control_rows[row])]
    z = keys[:, head // (case.query.shape[1] // keys.shape[1])] @ case.query[row, head].double()
    z = z * case.query.shape[2] ** -0.5
    score = torch.tensor(
        [
            (1 + program.scale[layer, head, tags[j]]) * z[j]
            + program.absolute[layer, head, tags[j]] * abs(z[j])
            + program.bias[layer, head, tags[j]]
            + torch.from_numpy(program.weight[layer, head]).double()
            @ tables.weights[tag_row, :, j].double()
            for j in seen
        ],
        dtype=torch.float64,
    )
    weights = torch.softmax(score, 0)
    mass = [
        float(sum(w for w, j in zip(weights, seen, strict=True) if classes[j] == c))
        for c in range(CLASSES)
    ]
    after = program.transform[layer, head].astype(np.float64) @ mass
    gates = program.gate_weight[layer, head].astype(np.float64) @ mass
    if (gates >= program.gate_threshold[layer, head]).all():
        empty = [c for c in range(CLASSES) if mass[c] == 0]
        kept = sum(after[c] for c in range(CLASSES) if c not in empty)
        lost = sum(after[c] for c in empty)
        for i, j in enumerate(seen):
            c = int(classes[j])
            weights[i] *= after[c] / mass[c] * (1 + lost / kept)
    return weights, seen, mass


def wanted(case, layer=1):
    output = torch.zeros(case.query.shape, dtype=torch.float64)
    masses = torch.zeros(*case.query.shape[:2], CLASSES, dtype=torch.float64)
    group = case.query.shape[1] // case.values[0].shape[1]
    starts = case.batch.query_starts.tolist()
    for seq in range(len(starts) - 1):
        for row in range(starts[seq], starts[seq + 1]):
            program = case.programs[int(case.batch.control_rows[row])]
            for head in range(case.query.shape[1]):
                weights, seen, mass = literal(case, layer, row, seq, head)
                made = weights @ case.values[seq][seen, head // group].double()
                gain, shift = program.gain[layer, head], program.shift[layer, head]
                output[row, head] = float(gain) * made + torch.from_numpy(shift.astype(np.float64))
                masses[row, head] = torch.tensor(mass)
    return output, masses


@pytest.mark.parametrize("hide", [False, True])
def test_the_formula(make_case, per_head, hide):
    case = per_head(make_case(hide=hide), sequences=(0, 2))
    output, masses = wanted(case)
    emit = Emission(torch.empty_like(masses, dtype=torch.float32), torch.empty(masses.shape[:2]))
    torch.testing.assert_close(case.run(), output, rtol=1e-6, atol=1e-6)
    case.run(emit=emit)
    torch.testing.assert_close(emit.masses.double(), masses, rtol=1e-5, atol=1e-6)


def test_it_matters_and_neighbours_keep_their_bits(make_case, per_head):
    before = make_case().run()
    case = per_head(make_case(), sequences=(1,))
    after = case.run()
    assert torch.equal(after[[0, 2, 3, 4, 5, 6]], before[[0, 2, 3, 4, 5, 6]])
    heads = case.batch.per_head_table().heads[1, 1].bool()
    assert not torch.equal(after[1, heads], before[1, heads])
    torch.testing.assert_close(after[1, ~heads], before[1, ~heads], rtol=1e-12, atol=1e-12)


def test_moved_rows_are_counted_by_the_own_classes(make_case, per_head):
    """What moves is class 1: all keys by their tags, and in heads of their own the first one."""
    case = per_head(make_case(queries=(1, 3), contexts=(9, 9)), sequences=(0, 1))
    program = Program.identity(ControlShape(2, 4, 16))
    program.transform[..., 1, 1], program.transform[..., 0, 1] = 0.5, 0.5
    case.write(1, program)
    case.batch.control_rows[:] = 1
    case.tables[1].tags[:] = 0
    classes = case.batch.per_head_table().classes
    classes.zero_()
    classes[1:3, ..., 0] = 1
    case.run()
    heads = case.batch.per_head_table().heads[1:3, 1].bool()
    rows = torch.tensor([[1], [3]], dtype=torch.int32)
    assert torch.equal(case.tables[1].moved[1:3, 1], torch.where(heads, rows, 0))


@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_the_slopes(make_case, per_head, seed):
    case = make_case(queries=(1, 1), contexts=(9, 66), seed=seed)
    case = per_head(case, sequences=(1,))
    reference.store(
        case.new(case.keys), case.new(case.values), case.key_cache, case.value_cache,
        case.batch.slots,
    )  # fmt: skip
    losses = torch.randn(2, 3, *case.query.shape[1:], dtype=torch.float64)
    arguments = (case.key_cache, case.value_cache, replace(case.batch, derived={}), 1, 0.25)
    made = gradients.saliency(case.query, losses, *arguments)
    for seq in range(2):
        for loss in range(3):
            direction = torch.randn(case.query.shape[1:], dtype=torch.float64)
            ends = []
            for step in (1e-5, -1e-5):
                query = case.query.clone()
                query[seq] += step * direction
                batch = replace(case.batch, derived={})
                output = reference.decode(query, case.key_cache, case.value_cache, batch, 1, 0.25)
                ends.append((output[seq] * losses[seq, loss]).sum())
            slope = (made.grad_query[seq, loss] * direction).sum()
            torch.testing.assert_close(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-7)


def test_without_a_row_nothing_changes(make_case, per_head):
    before = make_case().run()
    case = per_head(make_case(), sequences=())
    assert case.batch.per_head_classes
    assert torch.equal(case.run(), before)


def test_score_edits_alone_do_not_see_them(make_case, per_head, with_edits):
    plain, own = (make_case(), per_head(make_case(), sequences=(0, 1, 2)))
    edits = (Edit.SCORE | Edit.HEAD,) * 2
    assert torch.equal(
        plain.run(batch=with_edits(plain.batch, edits)), own.run(batch=with_edits(own.batch, edits))
    )
