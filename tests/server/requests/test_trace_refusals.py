"""Traces of what is not there, of too much, and of what the engine left out."""

import pytest
from pydantic import ValidationError

from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Context, Prompt
from saccade_interventions.model_facts import ModelFacts
from saccade_server.engine.traces.data import TracePiece
from saccade_server.requests.errors import RequestError, TooMuch
from saccade_server.requests.traces.joining import TraceLostError
from saccade_server.requests.traces.options import TraceOptions
from saccade_server.requests.traces.resolve import (
    MOST_INLINE,
    TracePlan,
    check_bytes,
    check_plan,
)
from saccade_testing.traced_plans import (
    BLIND,
    MODEL,
    PROMPT,
    REGISTRY,
    TEXT,
    TOKENS,
    VIEWS,
    arrays,
    pieces,
    plan,
    refused,
    scope,
)


def test_what_is_not_there():
    out = "trace_out_of_range"
    assert refused(masses={"layers": [0, 3]}) == (out, "trace.masses.layers[1]")
    assert refused(attention={"heads": [4]}) == (out, "trace.attention.heads[0]")
    assert refused(heatmaps={"images": [0, 2]}) == (out, "trace.heatmaps.images[1]")
    assert refused(columns={"keys": [[0, 31]]}) == (out, "trace.columns.keys[0][1]")
    assert refused(logit_lens={"layers": [4]}) == (out, "trace.logit_lens.layers[0]")
    assert refused(entropy={"rows": {"answer": [0, 7]}}) == (out, "trace.entropy.rows.answer[1]")
    assert refused(sinks={"layers": [3]}) == (out, "trace.sinks.layers[0]")
    assert refused(saliency={"rows": "all"}) == ("trace_undefined", "trace.saliency.rows")
    short = scope(max_tokens=1)
    assert refused(short, attention={"keys": "answer"}) == (
        "trace_undefined",
        "trace.attention.keys",
    )
    nothing = scope(max_tokens=0)
    assert refused(nothing, masses=True) == ("trace_undefined", "trace.masses.rows")


def test_what_needs_images_or_sinks():
    text, blind = scope(prompt=TEXT), scope(prompt=TEXT, model=BLIND)
    for kinds, path in (
        ({"heatmaps": True}, "trace.heatmaps"),
        ({"vas": True}, "trace.vas"),
        ({"vhd": True}, "trace.vhd"),
        ({"attention": {"keys": "image"}}, "trace.attention.keys"),
    ):
        assert refused(text, **kinds) == ("trace_requires_image", path)
        assert refused(blind, **kinds) == ("trace_unsupported_model", path)
    assert refused(blind, sinks=True) == ("trace_unsupported_model", "trace.sinks")
    unknown = scope(model=ModelFacts(layers=3, heads=4, kv_heads=2, head_dim=4, hidden_size=16))
    code, path = refused(unknown, heatmaps={"sinks": "drop"})
    assert (code, path) == ("trace_unsupported_model", "trace.heatmaps.sinks")
    assert plan(unknown, heatmaps=True)
    placeless = Prompt(length=25, images=((2, 6),))
    assert refused(scope(prompt=placeless), heatmaps=True)[0] == "trace_unsupported_model"
    assert refused(vas=True) == ("trace_undefined", "trace.vas")


def test_sinks_of_a_plan_and_of_a_trace_are_the_same():
    (var,) = REGISTRY.parse([{"method": "var", "sink_dims": [3]}])
    ours = compile_plan([var], Context(MODEL, PROMPT))
    (var,) = REGISTRY.parse([{"method": "var"}])
    models = compile_plan([var], Context(MODEL, PROMPT))
    for kinds in ({"masses": True}, {"sinks": True}, {"heatmaps": {"sinks": "mark"}}):
        check_plan(plan(**kinds), models, MODEL)
        with pytest.raises(RequestError, match=r"interventions\[0\]"):
            check_plan(plan(**kinds), ours, MODEL)
    for kinds in ({"masses": {"sinks": "keep"}}, {"heatmaps": True}, {"entropy": True}):
        check_plan(plan(**kinds), ours, MODEL)


def test_nothing_behind_the_image():
    short = Prompt(length=10, images=((2, 10),), views=VIEWS[:1])
    (reading,) = plan(scope(prompt=short), masses=True).trace.readings
    assert reading.keys == (short.images, ())
    assert refused(scope(prompt=short), attention={"keys": "question"})[0] == "trace_undefined"


def test_bytes_are_those_of_the_shapes():
    found = plan(masses=True, entropy={"layers": [0]}, sinks={"layers": [1]})
    made = arrays(found)
    assert found.bytes == sum(array.values.nbytes for array in made.values())
    assert found.bytes == 4 * (TOKENS * 3 * 5 + TOKENS) + 25 * (4 + 1 + 4)
    options = TraceOptions.model_validate({"masses": True, "max_bytes": 2 * found.bytes})
    check_bytes([found], 2, options, 2 * found.bytes)
    with pytest.raises(TooMuch):
        check_bytes([found, found], 2, options, 10**9)
    with pytest.raises(TooMuch, match=f"allows {found.bytes}"):
        check_bytes([found], 2, options, found.bytes)


def test_an_answer_holds_what_can_be_written_at_once():
    found = plan(masses=True)
    times = MOST_INLINE // found.bytes
    asked = {"masses": True, "max_bytes": 2 * MOST_INLINE}
    inline = TraceOptions.model_validate(asked | {"delivery": "inline"})
    check_bytes([found], times, inline, 2 * MOST_INLINE)
    with pytest.raises(TooMuch, match="answer holds") as refusal:
        check_bytes([found], times + 1, inline, 2 * MOST_INLINE)
    assert refusal.value.param == "trace.delivery"
    check_bytes([found], times + 1, TraceOptions.model_validate(asked), 2 * MOST_INLINE)


def test_names_beside_others():
    found = plan(masses=True, columns=True, entropy=True).prefixed("detectors.0.")
    assert {r.name for r in found.trace.readings} == {
        f"detectors.0.{name}" for name in ("masses", "columns", "entropy")
    }
    assert list(arrays(found)) == ["masses", "columns", "entropy"]


def lost(found: TracePlan, some: list[TracePiece], generated: int = TOKENS) -> str:
    joined = found.collect()
    joined.add(some)
    with pytest.raises(TraceLostError) as failed:
        joined.arrays(generated)
    return str(failed.value)


def test_what_the_engine_leaves_out_is_missed():
    found = plan(entropy=True, columns=True)
    whole = pieces(found, TOKENS)
    for at in range(len(whole)):
        assert lost(found, whole[:at] + whole[at + 1 :])
    assert "next" in lost(found, [*whole, whole[1]])
    assert lost(found, [])
    joined = found.collect()
    joined.add([*whole[::-1], TracePiece("another", 0, whole[0].array)])
    assert list(joined.arrays(TOKENS)) == ["columns", "entropy"]


def test_rows_may_come_in_any_order_and_behind_the_end():
    found = plan(entropy=True)
    joined = found.collect()
    joined.add(pieces(found, TOKENS)[::-1])
    assert joined.arrays(2)["entropy"].values.tolist() == [24, 25]


@pytest.mark.parametrize("options", [{"top": 21}, {"top": 2.5}, {"layers": "all"}, {"heads": [0]}])
def test_options_are_closed(options):
    with pytest.raises(ValidationError):
        TraceOptions.model_validate({"logit_lens": options})
