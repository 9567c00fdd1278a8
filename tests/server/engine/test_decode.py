"""Padded decode steps: their sizes, what they are filled with, and that padding is nothing."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.edits import TagRun
from saccade_interventions.phases import Phase, parse_rows
from saccade_interventions.plan import Plan
from saccade_interventions.rules import HeadSinkRule, SinkRule
from saccade_kernels.controls import CLASSES, NEVER_ATTEND, ControlShape
from saccade_server.engine.batch import PromptPositions
from saccade_server.engine.chunk import Chunk
from saccade_server.engine.decode import StepVariant, Variant, padded_sizes
from saccade_server.engine.drawn import DrawnRows
from saccade_server.engine.inputs import DecodeInputs, fill, pad
from saccade_server.engine.request import GenerateRequest, SamplingParams
from saccade_server.engine.seats import Seats
from saccade_server.engine.sequence import Sequence
from saccade_testing import tiny
from saccade_testing.engine import core_with, make_request, run

PADDED = {"overlap": False, "padded_decode": True}


@pytest.mark.parametrize(
    ("most", "sizes"),
    [
        (1, (1,)),
        (3, (1, 2, 3)),
        (8, (1, 2, 4, 8)),
        (20, (1, 2, 4, 8, 16, 20)),
        (290, (1, 2, 4, *range(8, 256, 8), 256, 272, 288, 290)),
    ],
)
def test_sizes_reach_the_largest_batch(most: int, sizes: tuple[int, ...]) -> None:
    assert padded_sizes(most) == sizes


def decoding(prompt: int, known: int, drawing: int, pages: list[int]) -> Chunk:
    """The next token of a sequence that has its prompt and ``known`` tokens more."""
    sampling = SamplingParams(max_tokens=100)
    made = Sequence(GenerateRequest(request_id="r", tokens=tuple(range(prompt)), sampling=sampling))
    for token in range(known):
        made.append(50 + token)
    made.pages, made.drawing = pages, drawing
    made.computed = made.length - 1
    return Chunk.of(made, 1)


def test_inputs_are_those_of_the_chunks_and_the_rest_is_padding() -> None:
    layout = DecodeInputs.layout(4, 3, 5)
    garbage = np.full(layout.size, 0x5A, np.uint8)
    inputs = DecodeInputs(*layout.arrays(garbage))
    known, unknown = decoding(70, 2, 0, [9, 4]), decoding(3, 1, 1, [7])
    other = decoding(5, 1, 1, [8])
    unknown.sequence.tag_row = 5
    deltas = {known.sequence: -60, unknown.sequence: 10}
    seats = Seats(2, 5, lambda s: PromptPositions(np.zeros((3, 70), np.int64), deltas[s]))
    drawn = DrawnRows()
    drawn.note([other.sequence, unknown.sequence])
    pad(inputs, 2, 100)
    chunks = [known, unknown]
    fill(inputs, seats, seats.roster(chunks), np.array([c.start for c in chunks]), drawn)
    assert inputs.tokens.tolist() == [51, 0, 0, 0]
    assert inputs.sources.tolist() == [100, 1, 102, 103]
    assert inputs.positions.tolist() == [[11, 14, 0, 0]] * 3
    assert inputs.slots.tolist() == [4 * 64 + 7, 7 * 64 + 4, 0, 0]
    assert inputs.context_lens.tolist() == [72, 5, 0, 0]
    assert inputs.tag_rows.tolist() == [0, 5, 0, 0]
    assert inputs.page_table.tolist() == [[9, 4, 0, 0, 0], [7, 0, 0, 0, 0], [0] * 5, [0] * 5]


def test_a_last_prompt_row_follows_its_own_program_at_its_own_position() -> None:
    """What is kept of a sequence is about the rows behind it."""
    made = decoding(3, 0, 0, [7]).sequence
    made.request = structs.replace(made.request, plan=plan(made.request, 2))
    made.control_rows = {Phase.LAST: 3, Phase.GENERATED: 5}
    seats = Seats(1, 5, lambda _: PromptPositions(np.array([[0, 1, 9], [0, 1, 8]]), delta=20))
    found = []
    for _ in range(2):
        inputs, chunks = DecodeInputs.empty(1, 2, 5), [Chunk.of(made, 1)]
        starts = np.array([made.computed])
        fill(inputs, seats, seats.roster(chunks), starts, DrawnRows())
        found.append((inputs.control_rows.tolist(), inputs.positions.tolist()))
        made.append(4)
        made.computed += 1
    assert found == [([3], [[9], [8]]), ([5], [[23], [23]])]


def note_plays(core: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Size and classes of every step that is played; none edits residuals."""
    decoder, seen = core._runner._decoder, []
    compute = decoder.compute

    def play(variant: Variant) -> None:
        if isinstance(variant, StepVariant):
            assert not variant.reach
            seen.append((variant.size, variant.classes))
        compute(variant)

    monkeypatch.setattr(decoder, "play", play)
    return seen


def plan(prompt: Any, classes: int) -> Plan:
    builder = PlanBuilder(ControlShape(4, 4, 16), len(prompt.tokens), 0)
    tags = [builder.tag([(place, place + 1)]) for place in range(classes - 1)]
    builder.score(((1, (0, 1)),), tags, parse_rows("prompt+generated"), bias=1.0)
    return builder.build()


def test_decodes_are_played_at_the_next_size_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core = core_with("llama", **PADDED)
    seen = note_plays(core, monkeypatch)
    prompt = tiny.prompt("llama")
    requests = [make_request(prompt, str(i), None, 3, ignore_eos=True) for i in range(5)]
    run(core, requests)
    assert seen == [(8, 1)] * 2  # the first token comes from the prompt's own step


def test_edited_steps_are_played_with_all_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    core = core_with("llama", **PADDED)
    seen = note_plays(core, monkeypatch)
    prompt = tiny.prompt("llama")
    run(core, [make_request(prompt, "r", plan(prompt, 2), 2, ignore_eos=True)])
    assert seen == [(1, CLASSES)]


def test_images_and_probes_are_left_to_ordinary_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget of one token: the prompt comes in single tokens, the last of them can be played."""
    core = core_with("llava", max_batched_tokens=1, max_num_seqs=1, **PADDED)
    seen = note_plays(core, monkeypatch)
    prompt = tiny.prompt("llava", images=1)
    result = run(core, [make_request(prompt, "r", None, 3, ignore_eos=True)])["r"]
    assert seen == [(1, 1)] * 3
    wanted = run(core_with("llava"), [make_request(prompt, "r", None, 3, ignore_eos=True)])["r"]
    assert result.tokens == wanted.tokens


@pytest.mark.parametrize("asks", ["sinks", "heads", "image"])
def test_a_last_row_that_is_looked_at_is_left_to_an_ordinary_step(
    asks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs alone here. What is found of the prompt needs no look at the rows behind."""
    core = core_with("llava", max_batched_tokens=1, max_num_seqs=1, **PADDED)
    seen = note_plays(core, monkeypatch)
    prompt = tiny.prompt("llava", images=asks == "image")
    request = make_request(prompt, "r", None, 3, ignore_eos=True)
    if asks == "image":  # ends with its last feature
        (image,) = prompt.images
        request = structs.replace(request, tokens=request.tokens[: image.start + image.length])
    else:
        tokens = request.tokens[: 1 if asks == "heads" else None]
        builder = PlanBuilder(ControlShape(4, 4, 16), len(tokens), 0)
        sites, sink = ((1, (0,)),), builder.new_class()
        builder.mass(sites, [(sink, 0, 0.5)], parse_rows("prompt"))
        if asks == "heads":
            builder.rule(HeadSinkRule(sites, 0.1, decode="off"))
        else:
            builder.rule(SinkRule(0.8, (3, 11), (1, 2), ((0, sink),)))
        request = structs.replace(request, tokens=tokens, plan=builder.build())
    run(core, [request])
    assert seen == [(1, 1)] * 2


def test_padding_and_what_an_earlier_step_left_reach_nobody() -> None:
    """Page 0, where padding writes, and the block hold garbage; log-probabilities stay."""
    prompt = tiny.prompt("llama", text=70)
    request = make_request(prompt, "r", None, 6, logprobs=5, ignore_eos=True)
    wanted = run(core_with("llama"), [request])["r"]
    core = core_with("llama", **PADDED)
    crowd = [make_request(tiny.prompt("llama", seed=s), str(s), None, 9) for s in range(13)]
    run(core, crowd)
    for cache in (*core._runner._keys, *core._runner._values):
        cache[0] = float("nan")
    result = run(core, [request])["r"]
    assert result.tokens == wanted.tokens
    for found, expected in zip(result.logprobs, wanted.logprobs, strict=True):
        assert found.logprob == pytest.approx(expected.logprob, abs=1e-6)


def test_hidden_keys_stay_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = tiny.prompt("llama")
    nothing = PlanBuilder(ControlShape(4, 4, 16), len(prompt.tokens), 0).build()
    chosen = replace(nothing, tags=(TagRun(2, 9, NEVER_ATTEND),))
    request = make_request(prompt, "r", chosen, 8, ignore_eos=True)
    core = core_with("llama", **PADDED)
    seen = note_plays(core, monkeypatch)
    found = run(core, [request])["r"].tokens
    assert found == run(core_with("llama"), [request])["r"].tokens
    assert found != run(core_with("llama"), [make_request(prompt, "r", None, 8)])["r"].tokens
    assert {classes for _, classes in seen} == {8}


def test_a_padded_step_equals_an_ordinary_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of the same three sequences, at their own size and padded to eight."""
    cores = [core_with("qwen2_5_vl", **PADDED), core_with("qwen2_5_vl")]
    found: list[list[torch.Tensor]] = []
    for core in cores:
        seen: list[torch.Tensor] = []
        logits = core._runner.model.logits

        def note(hidden: torch.Tensor, logits: Any = logits, seen: Any = seen) -> torch.Tensor:
            seen.append(logits(hidden))
            return seen[-1]

        monkeypatch.setattr(core._runner.model, "logits", note)
        for seed in range(3):
            prompt = tiny.prompt("qwen2_5_vl", images=1, seed=seed, text=10 + 40 * seed)
            core.submit(make_request(prompt, str(seed), None, 4, ignore_eos=True))
        while core.busy:
            core.step()
        found.append(seen)
    for padded, ordinary in zip(*found, strict=True):
        torch.testing.assert_close(padded[: len(ordinary)], ordinary)
