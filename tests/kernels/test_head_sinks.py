"""Which keys are sinks of a head, against the definition one key at a time, in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from saccade_kernels.batch import AttentionBatch
from saccade_kernels.controls import NEVER_ATTEND
from saccade_kernels.head_sinks import (
    HeadSinkOption,
    find_head_sinks,
    mean_received,
    settle_prompt_sinks,
)

PROMPT, KEYS = 9, 15
NONE, RELATIVE, FIRST, EXEMPT, ALONE = (HeadSinkOption(n) for n in (0, 1, 2, 4, 8))


def attention(case, row, layer=1, softcap=0.0, window=0):
    """A of one row of the only sequence by the contract of controls.py: [heads, row + 1]."""
    _, tables = case.tables
    heads, keys = case.query.shape[1], case.keys[0][: row + 1].double().numpy()
    tags = tables.tags[1, layer, : row + 1].numpy()
    betas = tables.weights[1, :, : row + 1].double().numpy()
    program = case.programs[int(case.batch.control_rows[row])]
    found = np.zeros((heads, row + 1))
    for head in range(heads):
        z = keys[:, head // (heads // keys.shape[1])] @ case.query[row, head].double().numpy()
        z = z * case.query.shape[2] ** -0.5
        if softcap:
            z = softcap * np.tanh(z / softcap)
        for k, tag in enumerate(tags):
            if tag == NEVER_ATTEND or (window and k <= row - window):
                z[k] = -np.inf
                continue
            scale, absolute, bias = (
                float(getattr(program, name)[layer, head, tag])
                for name in ("scale", "absolute", "bias")
            )
            weighted = float(program.weight[layer, head].astype(np.float64) @ betas[:, k])
            z[k] = z[k] + scale * z[k] + absolute * abs(z[k]) + bias + weighted
        found[head] = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    return found


def sinks(weights, options, threshold, least):
    """By the weights of rows 0 to the last, each [keys so far]; of one head."""
    keys, hits = len(weights[-1]), []
    bound = threshold / keys if options & RELATIVE else threshold
    for k in range(keys):
        seen = [row[k] for row in weights if len(row) > k]
        if sum(seen) / len(seen) > bound and len(seen) >= least:
            hits.append(k)
    chosen = hits[1:] if options & FIRST else [k for k in hits if k]
    classes = [int(k in chosen) for k in range(keys)]
    if options & EXEMPT:
        classes[0] = 2
    return classes


def single(case, row) -> AttentionBatch:
    """The step of one row, beside two decodes that ask for nothing, one of them padding."""
    return replace(
        case.batch,
        slots=torch.zeros(3, dtype=torch.int64),
        query_starts=torch.arange(4, dtype=torch.int32),
        context_lens=torch.tensor([0, row + 1, row + 1], dtype=torch.int32),
        page_table=case.batch.page_table[:1].expand(3, -1).contiguous(),
        num_decodes=3,
        max_context=KEYS,
        control_rows=torch.tensor([0, case.batch.control_rows[row], 1], dtype=torch.int32),
        tag_rows=torch.tensor([0, 1, 2], dtype=torch.int32),
        edits=case.batch.prefills[0].runs[0].edits,
        prefills=(),
        derived={},
    )


@pytest.fixture
def asking(make_case, per_head, head_sink_tables):
    """``asking(options, ...)``: one sequence of KEYS rows, its case and its tables."""

    def make(options, threshold, least=1, **case_options):
        case = make_case(queries=(KEYS, 2), contexts=(KEYS, 8), **case_options)
        case = per_head(case, sequences=(0,))
        return case, head_sink_tables(case, options, threshold, least)

    return make


@pytest.mark.parametrize("least", [1, 4])
@pytest.mark.parametrize("options", [NONE, RELATIVE, FIRST, EXEMPT, ALONE, FIRST | ALONE | EXEMPT])
def test_the_definition(asking, options, least):
    """A prompt, then row after row, each of which is tried twice."""
    threshold = 1.2 if options & RELATIVE else 0.1
    case, tables = asking(options, threshold, least)
    table, heads = case.tables[1].per_head, case.query.shape[1]
    of_the_first_layer = table.classes[1, 0].clone()
    weights = [attention(case, row) for row in range(KEYS)]
    received = torch.zeros(1, heads, PROMPT + 2, dtype=torch.float64)
    for row in weights[:PROMPT]:
        received[0, :, : row.shape[1]] += torch.from_numpy(row)
    of_prompt = replace(
        case.batch,
        context_lens=torch.tensor([PROMPT], dtype=torch.int32),
        tag_rows=case.batch.tag_rows[:1],
    )
    listed = (tables.places[1, 1] >= 0).nonzero().flatten().tolist()
    assert 0 < len(listed) <= heads
    settle_prompt_sinks(received, of_prompt, 1, tables)
    for head in listed:
        rows = [w[head] for w in weights[:PROMPT]]
        found = table.classes[1, 1, head, :PROMPT].tolist()
        assert found == sinks(rows, options, threshold, 1)
        assert 1 in found
    rows = torch.tensor([1, -1], dtype=torch.int32)
    case.key_cache.flatten(0, 1)[case.batch.slots[:KEYS]] = case.keys[0]
    for row in range(PROMPT, KEYS):
        query, scale = case.query[:3].clone(), case.query.shape[-1] ** -0.5
        query[1] = case.query[row]
        for _ in range(2):
            batch = single(case, row)
            find_head_sinks(query, case.key_cache, batch, 1, scale, 0.0, 0, rows, tables)
            for head in listed:
                alone = options & ALONE
                seen = [weights[row][head]] if alone else [w[head] for w in weights[: row + 1]]
                wanted = sinks(seen, options, threshold, 1 if alone else least)
                assert table.classes[1, 1, head, : row + 1].tolist() == wanted
                total = sum(np.pad(w[head], (0, KEYS - len(w[head]))) for w in weights[: row + 1])
                at = int(tables.places[1, 1, head])
                np.testing.assert_allclose(tables.sums[at : at + row + 1], total[: row + 1], 1e-6)
    others = [head for head in range(heads) if head not in listed]
    assert (table.classes[1, 1, others] == NEVER_ATTEND - 1).all()
    assert torch.equal(table.classes[1, 0], of_the_first_layer)
    assert (tables.counted[1, 0] == -7).all()


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
    kept = [row[: i + 1] for i, row in enumerate(rows)]
    for key, mean in enumerate(wanted[1:], start=1):
        found = [sinks(kept, NONE, mean + margin, 1)[key] for margin in (-1e-9, 1e-9)]
        assert found == [1, 0], "the means are what the threshold is compared with"


@pytest.mark.parametrize("hide", [False, True])
@pytest.mark.parametrize(("softcap", "window"), [(0.0, 5), (1.5, 0)])
def test_what_a_row_sees(asking, hide, softcap, window):
    case, tables = asking(ALONE, 0.15, hide=hide)
    case.key_cache.flatten(0, 1)[case.batch.slots[:KEYS]] = case.keys[0]
    if hide:
        case.tables[1].tags[1, 1, 3:6] = NEVER_ATTEND
        case.tables[1].tags[1, 1, KEYS - 1] = 0
    row = KEYS - 1
    query, rows = case.query[:3].clone(), torch.tensor([1], dtype=torch.int32)
    query[1] = case.query[row]
    scale = query.shape[-1] ** -0.5
    batch = single(case, row)
    find_head_sinks(query, case.key_cache, batch, 1, scale, softcap, window, rows, tables)
    wanted = attention(case, row, softcap=softcap, window=window)
    for head in (tables.places[1, 1] >= 0).nonzero().flatten().tolist():
        found = case.tables[1].per_head.classes[1, 1, head, :KEYS].tolist()
        assert found == sinks([wanted[head]], ALONE, 0.15, 1)
    if hide:
        assert not wanted[:, 3:6].any()
