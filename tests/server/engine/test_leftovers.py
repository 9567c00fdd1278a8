"""Whatever lies in memory that nobody holds reaches no step: random bytes and NaN stand for it.

On a GPU memory is never as clean as in a fresh test. A warm-up, a step of another size, a sequence
that has ended leave their bytes, and under another layout those are page numbers and token ids that
do not exist.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.edits import ResidualEdit
from saccade_interventions.phases import parse_rows
from saccade_interventions.registry import Registry
from saccade_interventions.rules import HeadSinkRule, SinkRule
from saccade_kernels.controls import ControlShape
from saccade_server.engine.decode import PLAIN, StepVariant
from saccade_server.engine.inputs import DecodeInputs
from saccade_server.engine.stages import StageVariant
from saccade_server.engine.warmup import warm_up
from saccade_server.models.residual import Reach
from saccade_testing import tiny
from saccade_testing.engine import MakeCore, ask, core_with, make_request, run
from saccade_testing.garbage import Recorder, noise

AS_ON_A_GPU = {"overlap": True, "padded_decode": True}
SAMPLED = {"temperature": 1.1, "seed": 5}
FILTERED = {"temperature": 0.9, "top_k": 40, "min_p": 0.001, "top_p": 0.95, "seed": 6}

ENTRIES: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "scores": {"method": "pai", "alpha": 0.8},
    "masses and sinks": {
        "method": "var",
        "tau": 1.0,
        "min_visual_mass": 0.02,
        "rho": 0.3,
        "move_fraction": 0.6,
        "layers": [1, 2],
        "sink_dims": [3, 11],
    },
    "heads": {"method": "head_scale", "gain": 1.5, "layers": [1]},
    "classes of single heads": {
        "method": "act",
        "heads": {"0": [1, 3], "3": [0, 2]},
        "theta": 0.06,
        "beta": 0.1,
    },
    "windows": {"method": "locore", "beta": 3.0, "layers": [0, 1, 2, 3]},
    "branch": {"method": "vcd", "alpha": 1.5, "noise_step": 700},
    "early layers": {"method": "dola", "layers": [0, 1, 3]},
    "measured heads": {"method": "vhr", "gain": 3.0, "rows": "last+generated"},
    "candidates": {"method": "sgrs", "alpha": 1.2, "layers": [0, 3], "region": "after_image"},
    "confidence": {"method": "adaptvis", "w1": 3.0, "w2": 0.2, "threshold": 1.0},
}


@pytest.fixture
def family(decoder_family: str) -> str:
    """Every family that has a decoder of its own."""
    return decoder_family


def test_every_variant_is_captured_and_replayed_on_a_block_of_garbage(family: str) -> None:
    """The bytes of another size crashed a GPU's start: token ids far outside the vocabulary."""
    core = core_with(family, max_num_seqs=10, **AS_ON_A_GPU)
    decoder = core._runner._decoder
    warm_up(core._runner, 512)
    summary = core._runner.capture(Recorder(decoder))
    assert summary.variants == tuple(decoder.variants)
    sizes = {1, 2, 4, 8, 10}
    assert {v.size for v in summary.variants if isinstance(v, StepVariant)} == sizes
    draws = {v for v in summary.variants if v in decoder.stages.variants and "draw" in v.stage}
    assert draws == {(kind, size) for kind in ("free draw", "filtered draw") for size in sizes}
    prompts = [tiny.prompt(family, seed=seed, text=9 + 7 * seed) for seed in range(5)]
    kinds = [{}, SAMPLED, FILTERED, SAMPLED, {}]
    requests = [
        make_request(prompt, str(count), None, 3 + count, ignore_eos=True, **kinds[count])
        for count, prompt in enumerate(prompts)
    ]
    wanted = run(core_with(family), requests)
    found = run(core, requests)  # fewer and fewer of them, so sizes follow one another
    assert {n: r.tokens for n, r in found.items()} == {n: r.tokens for n, r in wanted.items()}


@pytest.mark.parametrize("size", [1, 2, 4, 8, 10])
def test_an_idle_variant_holds_padding_in_every_place(size: int) -> None:
    decoder = core_with("qwen2_5_vl", max_num_seqs=10, **AS_ON_A_GPU)._runner._decoder
    noise(decoder._block)
    decoder.idle(StepVariant(size, PLAIN, Reach.NOWHERE))
    inputs = vars(DecodeInputs(*decoder._layouts[size].tensors(decoder._block)))
    assert torch.equal(decoder._words[inputs.pop("sources")], inputs["tokens"])
    assert (inputs.pop("searched") == -1).all()
    for field in inputs.values():
        assert not field.any()


@pytest.mark.parametrize("kind", ["free draw", "filtered draw"])
@pytest.mark.parametrize("size", [1, 2, 4, 8, 10])
def test_an_idle_draw_is_nobody_s(size: int, kind: str) -> None:
    """Behind garbage it draws from, and into, the one row that no sequence has."""
    decoder = core_with("llama", max_num_seqs=10, **AS_ON_A_GPU)._runner._decoder
    noise(decoder._uploaded)
    noise(decoder.outputs.logits)
    decoder.drawn.fill_(7)
    decoder.idle(StageVariant(kind, size))()
    assert decoder.drawn[:10].tolist() == [7] * 10
    assert 0 <= int(decoder.drawn[10]) < decoder.outputs.logits.shape[1]


def test_what_was_written_for_another_size_is_never_computed() -> None:
    decoder = core_with("llama", max_num_seqs=10, **AS_ON_A_GPU)._runner._decoder
    plain = (PLAIN, Reach.NOWHERE)
    with pytest.raises(AssertionError, match="another size"):
        decoder.compute(StepVariant(4, *plain))
    decoder.idle(StepVariant(8, *plain))
    with pytest.raises(AssertionError, match="another size"):
        decoder.compute(StepVariant(4, *plain))
    decoder.idle(StageVariant("free draw", 8))
    for draw in (StageVariant("free draw", 4), StageVariant("filtered draw", 8)):
        with pytest.raises(AssertionError, match="another size"):
            decoder.compute(draw)


def test_rehearsing_reads_nothing_that_lies_in_the_block() -> None:
    runner = core_with("llama", **AS_ON_A_GPU)._runner
    noise(runner._decoder._uploaded)
    runner.rehearse()


def free_memory(core: Any) -> Iterator[torch.Tensor]:
    """All that an idle engine keeps on the device between steps and nobody may count on.

    Rows 0 of the tables are not among it, nor those that keep programs for the next who asks.
    """
    runner = core._runner
    yield from (*runner._keys, *runner._values, runner._drawn)
    tables = runner.tables
    rows = core._scheduler.rows
    controls = sorted(set(range(1, len(tables.controls.gain))) - set(rows._row_of.values()))
    slots = sorted(set(range(len(tables.residuals.bank))) - set(rows._vectors._slot_of.values()))
    yield from some_of(tables.controls, controls)
    yield from some_of(tables.residuals, controls, "bank")
    yield from (tables.residuals.bank[slot] for slot in slots)
    yield from some_of(tables.tags, range(1, len(tables.tags.tags)))
    if tables.tags.per_head is not None:
        yield from (t[1:] for t in vars(tables.tags.per_head).values())
        asking = dict(vars(runner.rules[HeadSinkRule].tables))
        del asking["arrived"]  # of the kernel's alone
        yield asking.pop("sums")
        yield from (t[1:] for t in asking.values())
    sinks = runner.rules[SinkRule]
    yield from (tensor for tensor in (sinks.parts.sink_scores, sinks._met) if tensor is not None)
    if runner._decoder is not None:
        outputs = runner._decoder.outputs
        yield from (runner._decoder._uploaded, outputs.logits, outputs.residuals)


def some_of(table: Any, rows: Iterable[int], *without: str) -> Iterator[torch.Tensor]:
    for name, tensor in vars(table).items():
        if isinstance(tensor, torch.Tensor) and name not in without:
            yield from (tensor[row] for row in rows)


def spoil(core: Any, garbage: str) -> None:
    """All bits set are NaN, classes that nobody has, and negative counts."""
    for tensor in free_memory(core):
        if garbage == "random":
            noise(tensor)
        else:
            tensor.view(-1).view(torch.uint8).fill_(255)


@pytest.fixture(autouse=True)
def no_step_failed(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """An engine tries a failed step again, chunk by chunk, and would hide what crashed it."""
    yield
    assert not [record.getMessage() for record in caplog.get_records("call")]


def test_nothing_that_was_left_reaches_a_request(make_core: MakeCore) -> None:
    """Every kind of edit and rule, each behind garbage in all memory that nobody holds."""
    config = {"prefix_caching": False, "max_num_seqs": 6}
    dirty = {garbage: make_core("llava", **config) for garbage in ("random", "ones")}
    prompt = tiny.prompt("llava", images=2, seed=1, text=30)
    for name, entry in ENTRIES.items():
        methods = Registry.discover().parse([entry]) if entry else []
        request = ask(prompt, methods, "r", 5, logprobs=1)
        wanted = run(make_core("llava", **config), [request])["r"]
        for garbage, core in dirty.items():
            spoil(core, garbage)
            found = run(core, [request])["r"]
            assert found.tokens == wanted.tokens, (name, garbage)
            assert found.logprobs == wanted.logprobs, (name, garbage)
            assert found.last.receipt == wanted.last.receipt, (name, garbage)


@pytest.mark.parametrize("garbage", ["random", "ones"])
def test_residuals_are_edited_for_those_who_asked(garbage: str, make_core: MakeCore) -> None:
    """A plan that leaves residuals alone, beside one that edits them, in rows full of garbage."""
    prompt = tiny.prompt("llama", text=20)
    requests = []
    for name in ("heads", "residuals"):
        builder = PlanBuilder(ControlShape(4, 4, 16), len(prompt.tokens), 0)
        rows = parse_rows("prompt+generated")
        if name == "heads":
            builder.head(((1, (0, 1)),), rows, 1.5)
        else:
            direction = builder.vectors(np.eye(1, 64, dtype=np.float32))
            builder.residual(ResidualEdit(2, rows, direction, 0, shift=2.0, relative=True))
        requests.append(make_request(prompt, name, builder.build(), 5, logprobs=1, ignore_eos=True))
    config = {"prefix_caching": False}
    wanted, dirty = run(make_core("llama", **config), requests), make_core("llama", **config)
    spoil(dirty, garbage)
    found = run(dirty, requests)
    for name, result in found.items():
        assert result.tokens == wanted[name].tokens, name
        assert result.logprobs == wanted[name].logprobs, name
