"""Traces read what rows really computed, each row once, and change nothing."""

from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from saccade_interventions.methods.vcd import VCD
from saccade_kernels.batch import PAGE
from saccade_server.engine.core import EngineCore
from saccade_server.engine.loop import _Commands
from saccade_server.engine.messages import Outputs, Submit, decode_command, decode_reply, encode
from saccade_server.engine.request import Array, EngineOutput, FinishReason, GenerateRequest
from saccade_server.engine.traces.data import (
    AttentionReading,
    EntropyReading,
    ProjectionReading,
    Reading,
    Trace,
    TracePiece,
)
from saccade_server.engine.traces.tracing import TraceHandler
from saccade_testing import tiny
from saccade_testing.engine import REGISTRY, ask, core_with, make_request, run

TOKENS = 6
SETTINGS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "chunks": {"max_batched_tokens": 16},
    "padded": {"padded_decode": True},
    "as on a GPU": {"padded_decode": True, "overlap": True},
    "preempted": {"max_batched_tokens": 48},
}


def prompts_of(family: str) -> list[tiny.TinyPrompt]:
    """Three, that fill their last pages but for two tokens."""
    short = len(tiny.prompt(family, text=0).tokens)
    return [tiny.prompt(family, seed=seed, text=-(short + 2) % PAGE) for seed in range(3)]


def core_for(setting: str, prompts: list[tiny.TinyPrompt], family: str) -> EngineCore:
    """Its cache holds the prompts, and where it preempts no more pages than those."""
    pages = sum(-(-len(prompt.tokens) // PAGE) for prompt in prompts)
    room = {"cache_tokens": pages * PAGE} if setting == "preempted" else {}
    return core_with(family, **{**SETTINGS[setting], **room})


def with_trace(request: GenerateRequest, *readings: Reading) -> GenerateRequest:
    return replace(request, trace=Trace(readings))  # type: ignore[arg-type]


def all_rows(prompt: Any, tokens: int = TOKENS) -> tuple[int, int]:
    return 0, len(prompt.tokens) + tokens - 1


def traced(prompt: Any, name: str = "r", **options: Any) -> GenerateRequest:
    request = make_request(prompt, name, max_tokens=TOKENS, ignore_eos=True, **options)
    return with_trace(request, EntropyReading(name="entropy", rows=all_rows(prompt)))


@torch.no_grad()
def entropy(model: Any, prompt: Any, tokens: list[int]) -> np.ndarray[Any, Any]:
    """Of every row, by transformers."""
    ids = torch.tensor([[*prompt.tokens, *tokens[:-1]]])
    logits = model(input_ids=ids, use_cache=False, **prompt.arguments(ids, model.dtype)).logits
    logs = logits[0].log_softmax(-1)
    found: np.ndarray[Any, Any] = -(logs.exp() * logs).sum(-1).numpy()
    return found


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", ["llama", "qwen2_5_vl"])
def test_entropy_of_all_rows_is_that_of_transformers(family: str, setting: str) -> None:
    prompts = prompts_of(family)
    core = core_for(setting, prompts, family)
    requests = [traced(prompt, str(n)) for n, prompt in enumerate(prompts)]
    results = run(core, requests)
    assert (core.stats().preemptions > 0) == (setting == "preempted")
    model = tiny.build(family)
    for n, prompt in enumerate(prompts):
        wanted = entropy(model, prompt, results[str(n)].tokens)
        np.testing.assert_allclose(results[str(n)].trace["entropy"], wanted, atol=1e-9)


def test_layers_are_what_enters_them() -> None:
    core, prompt = core_with("llama"), tiny.prompt("llama")
    rows = all_rows(prompt)
    last = EntropyReading(name="last", rows=rows)
    exits = EntropyReading(name="exits", rows=rows, layers=(1, 4))
    result = run(core, [with_trace(traced(prompt), last, exits)])["r"]
    assert result.trace["exits"].shape == (len(result.trace["last"]), 2)
    np.testing.assert_array_equal(result.trace["exits"][:, 1], result.trace["last"])
    assert not np.allclose(result.trace["exits"][:, 0], result.trace["last"])


def test_rows_that_are_read_are_computed_and_others_come_from_the_cache() -> None:
    """Pages of traced prompts are found by others, and by it as far as it reads nothing."""
    core, prompt = core_with("llama"), tiny.prompt("llama", text=300)
    first = run(core, [traced(prompt)])["r"]
    assert first.last is not None
    again = run(core, [traced(prompt)])["r"]
    assert again.last is not None
    assert again.last.cached_tokens == 0
    np.testing.assert_array_equal(again.trace["entropy"], first.trace["entropy"])
    reading = EntropyReading(name="entropy", rows=(200, 210))
    some = run(core, [with_trace(traced(prompt), reading)])["r"]
    assert some.last is not None
    assert some.last.cached_tokens == 192
    np.testing.assert_allclose(some.trace["entropy"], first.trace["entropy"][200:210], atol=1e-12)
    plain = run(core, [make_request(prompt, max_tokens=2)])["r"]
    assert plain.last is not None
    assert plain.last.cached_tokens == 256


def test_pieces_come_with_the_outputs_of_their_rows() -> None:
    core, prompt = core_with("llama"), tiny.prompt("llama")
    core.submit(traced(prompt))
    seen: list[tuple[int, int]] = []
    while core.busy:
        for output in core.step():
            seen += [(piece.start, piece.array.shape[0]) for piece in output.trace]
    length = len(prompt.tokens)
    assert seen == [(0, length), *((length + n, 1) for n in range(TOKENS - 1))]


def test_the_last_output_has_the_rest_whatever_ends_the_sequence() -> None:
    """An abort in the middle of a prompt, and a stop token."""
    core = core_with("llama", max_batched_tokens=16)
    prompt = tiny.prompt("llama", text=40)
    core.submit(traced(prompt))
    core.step()
    core.step()
    output = core.abort("r")
    assert output is not None
    assert [(piece.start, piece.array.shape[0]) for piece in output.trace] == [(0, 16), (16, 16)]
    whole = run(core, [traced(prompt)])["r"]
    stop = whole.tokens[2]
    ends = whole.tokens.index(stop) + 1
    request = traced(prompt, stop_token_ids=(stop,))
    stopped = run(core, [request])["r"]
    assert stopped.last is not None
    assert stopped.last.finish_reason is FinishReason.STOP
    assert len(stopped.trace["entropy"]) == len(prompt.tokens) + ends - 1


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_neighbour_notices_nothing(setting: str) -> None:
    """Same tokens, same log-probabilities, bit for bit."""

    def crowd(readings: bool) -> dict[str, Any]:
        other, *prompts = prompts_of("llama")
        core = core_for(setting, [other, *prompts], "llama")
        requests = [
            make_request(prompt, str(n), None, 8, ignore_eos=True, logprobs=2)
            for n, prompt in enumerate(prompts)
        ]
        other = traced(other, "t")
        results = run(core, [other if readings else replace(other, trace=None), *requests])
        return {n: (r.tokens, r.logprobs) for n, r in results.items()}

    assert crowd(True) == crowd(False)


def test_nobody_is_called_where_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a padded step stays one with a trace beside it."""
    called: list[str] = []
    for hook in ("wants", "look", "kept", "launched", "staged", "combine", "before", "accepted"):

        def note(*args: Any, hook: str = hook, **kwargs: Any) -> None:
            called.append(hook)

        monkeypatch.setattr(TraceHandler, hook, note)
    for setting in SETTINGS.values():
        core = core_with("llama", **setting)
        run(core, [make_request(tiny.prompt("llama", seed=n), str(n)) for n in range(3)])
    assert not called


def test_decodes_with_a_trace_stay_in_padded_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    core = core_with("llama", padded_decode=True)
    runner = core._runner
    ordinary: list[int] = []
    inner = runner._ordinary
    monkeypatch.setattr(
        runner,
        "_ordinary",
        lambda chunks, fill: (ordinary.append(len(chunks)), inner(chunks, fill))[1],
    )
    prompt = tiny.prompt("llama")
    run(core, [traced(prompt), make_request(prompt, "plain", max_tokens=TOKENS)])
    assert len(ordinary) == 1  # the prompts


def test_the_model_s_own_distribution_is_read_whatever_draws() -> None:
    """Contrast and a bias change what is drawn from, and not the entropy of a row."""
    prompt = tiny.prompt("llava")
    rows = all_rows(prompt)
    for setting in SETTINGS.values():
        request = ask(prompt, [VCD()], max_tokens=TOKENS, logit_bias={7: 3.0}, seed=1)
        request = with_trace(request, EntropyReading(name="entropy", rows=rows))
        result = run(core_with("llava", **setting), [request])["r"]
        wanted = entropy(tiny.build("llava"), prompt, result.tokens)
        np.testing.assert_allclose(result.trace["entropy"], wanted, atol=1e-9)


def test_a_row_that_is_tried_first_is_read_when_it_counts() -> None:
    """AdaptVis runs the last prompt row twice."""
    prompt = tiny.prompt("llava")
    core = core_with("llava")
    entry = {"method": "adaptvis", "threshold": 0.99}
    request = ask(prompt, REGISTRY.parse([entry]), max_tokens=TOKENS)
    request = with_trace(request, EntropyReading(name="entropy", rows=all_rows(prompt)))
    result = run(core, [request])["r"]
    assert len(result.trace["entropy"]) == len(prompt.tokens) + TOKENS - 1


BAD = {
    "rows 3 to 3": EntropyReading(name="a", rows=(3, 3)),
    "rows -1 to": EntropyReading(name="a", rows=(-1, 3)),
    "layers are not": EntropyReading(name="a", rows=(0, 3), layers=(2, 1)),
    "not distinct layers": EntropyReading(name="a", rows=(0, 3), layers=(5,)),
}


@pytest.mark.parametrize("words", BAD)
def test_what_is_not_there_is_refused(words: str) -> None:
    core = core_with("llama")
    output = core.submit(with_trace(traced(tiny.prompt("llama")), BAD[words]))
    assert output is not None
    assert words in (output.error or "")


def test_two_readings_of_one_name_are_refused() -> None:
    core: EngineCore = core_with("llama")
    one = EntropyReading(name="a", rows=(0, 3))
    output = core.submit(with_trace(traced(tiny.prompt("llama")), one, one))
    assert output is not None
    assert "one name" in (output.error or "")


def test_readings_cross_the_line() -> None:
    readings = (
        EntropyReading(name="a", rows=(0, 3)),
        AttentionReading(name="b", rows=(1, 2), layers=(0,), heads=(1,), over=frozenset({"row"})),
        ProjectionReading(name="c", rows=(0, 1), vectors=Array.pack(np.eye(2, dtype=np.float32))),
    )
    submit = Submit(with_trace(make_request(tiny.prompt("llama")), *readings), 1)
    assert decode_command(encode(submit)) == submit
    piece = TracePiece("a", 0, Array.pack(np.zeros((2, 3))))
    outputs = Outputs(outputs=[EngineOutput(request_id="r", tokens=(1,), trace=(piece,))])
    assert decode_reply(encode(outputs)) == outputs


def test_a_token_with_a_piece_crosses_as_more_than_a_number() -> None:
    core, prompt = core_with("llama"), tiny.prompt("llama")
    commands = _Commands(core)
    assert commands.obey(Submit(traced(prompt), 7)) is None
    told = []
    while core.busy:
        message = commands.pack(core.step())
        assert not message.numbers
        told += [len(output.trace) for output in message.outputs]
    assert told == [1] * TOKENS
