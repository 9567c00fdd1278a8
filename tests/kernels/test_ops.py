"""Attention sends decodes and prefills where they belong; what is stored comes before it."""

from dataclasses import replace

import pytest
import torch

from saccade_kernels import ops, reference

SIZES = {
    "decode": dict(queries=(1, 1, 1), contexts=(64, 7, 65)),
    "prefill": dict(queries=(7, 2), contexts=(7, 65)),
    "mixed": dict(queries=(1, 1, 5, 3), contexts=(130, 7, 64, 65)),
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_attention_is_decode_and_prefill(make_case, sizes):
    case = make_case(**sizes, dtype=torch.float32)
    output = case.run(layer=0, softcap=3.0, window=40)
    keys, values = case.key_cache.clone(), case.value_cache.clone()
    reference.store(case.new(case.keys), case.new(case.values), keys, values, case.batch.slots)
    decodes = case.batch.num_decodes
    parts = [
        function(query, keys, values, case.batch, 0, case.query.shape[-1] ** -0.5, 3.0, 40)
        for function, query in (
            (reference.decode, case.query[:decodes]),
            (reference.prefill, case.query[decodes:]),
        )
        if len(query)
    ]
    assert torch.equal(output, torch.cat(parts))


def test_the_new_keys_end_up_in_the_cache(make_case):
    case = make_case(**SIZES["mixed"])
    keys, values = case.key_cache.clone(), case.value_cache.clone()
    new = case.new(case.keys), case.new(case.values)
    reference.store(*new, keys, values, case.batch.slots)
    for cache, before, stored in (
        (keys, case.key_cache, new[0]),
        (values, case.value_cache, new[1]),
    ):
        assert torch.equal(cache.view(-1, 2, 16)[case.batch.slots], stored)
        cache.view(-1, 2, 16)[case.batch.slots] = torch.nan
        assert torch.equal(cache.isnan(), before.isnan())


@pytest.mark.parametrize(
    "chunks", [(65,), (64, 1), (1, 63, 1), (7, 20, 38), (33, 1, 1, 30)], ids=str
)
def test_a_prompt_in_chunks_is_the_prompt_at_once(make_case, with_edits, chunks):
    """The chunks of one query row run as decodes."""
    case = make_case(queries=(65,), contexts=(65,), programs=4)
    whole, rows = case.run(), case.batch.control_rows
    keys, values = case.key_cache.clone(), case.value_cache.clone()
    outputs, start = [], 0
    for count in chunks:
        step = slice(start, start + count)
        start += count
        batch = replace(
            case.batch,
            slots=case.batch.slots[step],
            query_starts=torch.tensor([0, count], dtype=torch.int32),
            context_lens=torch.tensor([start], dtype=torch.int32),
            num_decodes=int(count == 1),
            control_rows=rows[step],
        )
        batch = with_edits(batch, case.batch.edits)
        batch.validate()
        new = case.keys[0][step], case.values[0][step]
        reference.store(*new, keys, values, batch.slots)
        outputs.append(ops.attention(case.query[step], keys, values, batch, 1, 0.25))
    torch.testing.assert_close(torch.cat(outputs), whole, rtol=1e-10, atol=1e-10)
