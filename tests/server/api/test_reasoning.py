"""Reasoning is told from the answer: whole and streamed, counted, or left out."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade_server.api.reading import CallDelta, Said
from saccade_server.api.reasoning import CLOSES, OPENS, MayThink, Telling, ThinkingReader
from saccade_server.grammars.grammar import Grammar, GrammarKind, Thinking
from saccade_server.models.reasoning import Markers, Thought
from saccade_testing.api.bodies import chat_body
from saccade_testing.api.server import MakeServer, Server

TEXT = Markers("<think>", "</think>")
TOKENS = Markers("<think>", "</think>", (1, 2))
SPECIAL = Markers("[THINK]", "[/THINK]", (1, 2), special=True)
Answer = tuple[str, bool, str, str, str | None]
ANSWERS: list[Answer] = [
    # what is said, whether the prompt has begun the reasoning, reasoning, content, how far
    ("{o}\nHm.\nSo.\n{c}\n\nYes.\n", False, "Hm.\nSo.", "Yes.\n", "{o}\nHm.\nSo.\n{c}"),
    ("{o}Hm.{c}Yes.", False, "Hm.", "Yes.", "{o}Hm.{c}"),
    (" \n{o} Hm. {c} Yes.", False, " Hm. ", " Yes.", " \n{o} Hm. {c}"),
    ("{o}\n\n{c}\n\nYes.", False, "", "Yes.", "{o}\n\n{c}"),
    ("Hm.\n{c}\n\nYes.", True, "Hm.", "Yes.", "Hm.\n{c}"),
    ("\n{o}\nHm.\n{c}Yes.", True, "Hm.", "Yes.", "\n{o}\nHm.\n{c}"),
    ("Hm.\n\n", True, "Hm.", "", None),
    ("{o}\nHm. </thin", False, "Hm. </thin", "", None),
    ("{o}", False, "", "", None),
    ("", True, "", "", None),
    ("", False, "", "", ""),
    ("\n Yes. {c} {o}No{c}", False, "", "\n Yes. {c} {o}No{c}", ""),
    ("<thin", False, "", "<thin", ""),
    ("{o}a{o}b{c}c{o}d{c}e", False, "a{o}b", "c{o}d{c}e", "{o}a{o}b{c}"),
]


def read(reader: ThinkingReader, pieces: Sequence[str]) -> Said:
    """All that a reader makes of an answer that comes in pieces."""
    found = [reader.read(piece, False) for piece in pieces] + [reader.read("", True)]
    said, thought = (
        "".join(texts) for texts in zip(*((f.text, f.reasoning) for f in found), strict=True)
    )
    return Said(said, thought)


def filled(text: str, markers: Markers, shown: bool = False) -> str:
    """``text`` with the markers as a reader gets them, or as they are shown."""
    pair = (markers.opens, markers.closes) if shown or markers.tokens is None else (OPENS, CLOSES)
    return text.format(o=pair[0], c=pair[1])


@pytest.mark.parametrize("markers", [TEXT, TOKENS], ids=["texts", "tokens"])
@settings(max_examples=200, deadline=None)
@given(answer=st.sampled_from(ANSWERS), data=st.data())
def test_however_it_is_cut(markers: Markers, answer: Answer, data: st.DataObject) -> None:
    text, begun, reasoning, content, passed = answer
    text = filled(text, markers)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8).map(sorted))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    reader = ThinkingReader(markers, begun, Telling.APART)
    said = read(reader, pieces)
    assert said.reasoning == filled(reasoning, markers, shown=True)
    assert said.text == filled(content, markers, shown=True)
    assert reader.reasoned == (math.inf if passed is None else len(filled(passed, markers)))

    hidden = read(ThinkingReader(markers, begun, Telling.LEFT_OUT), pieces)
    assert hidden == Said(said.text)
    whole = read(ThinkingReader(markers, begun, Telling.AS_TEXT), pieces)
    own = text.replace(OPENS, markers.opens).replace(CLOSES, markers.closes)
    assert whole == Said(own)


def test_a_spelt_marker_is_text_where_the_marker_is_a_token() -> None:
    text = f"{OPENS}It ends with </think>, I know.{CLOSES}</think>"
    said = read(ThinkingReader(TOKENS, False, Telling.APART), list(text))
    assert said == Said("</think>", "It ends with </think>, I know.")


def test_special_markers_have_no_text_wherever_they_stand() -> None:
    text = f"{OPENS}a{OPENS}b{CLOSES}c{CLOSES}d"
    assert read(ThinkingReader(SPECIAL, False, Telling.APART), [text]) == Said("cd", "ab")
    assert read(ThinkingReader(SPECIAL, False, Telling.AS_TEXT), [text]) == Said("abcd")


class Calling:
    """Reads every text as a call's arguments."""

    reasoned = 0.0
    has_called = True

    def __init__(self) -> None:
        self.shown = {7: "<call>"}
        self.lasts: list[bool] = []

    def read(self, text: str, last: bool) -> Said:
        self.lasts.append(last)
        return Said(calls=(CallDelta(0, arguments=text),) if text else ())


@pytest.mark.parametrize("telling", Telling)
def test_what_stands_behind_is_read_by_another(telling: Telling) -> None:
    inner = Calling()
    reader = ThinkingReader(TOKENS, True, telling, inner)
    assert reader.shown == {7: "<call>", 1: OPENS, 2: CLOSES}
    said = reader.read(f"Hm.\n{CLOSES}\n<call>", False)
    assert said.calls == (CallDelta(0, arguments="<call>"),)
    assert (said.text, said.reasoning) == {
        Telling.APART: ("", "Hm."),
        Telling.LEFT_OUT: ("", ""),
        Telling.AS_TEXT: ("Hm.\n</think>\n", ""),
    }[telling]
    assert reader.has_called
    assert reader.read("}", True).calls == (CallDelta(0, arguments="}"),)
    assert inner.lasts == [False, True]


# Over HTTP. A token is a byte: { opens, } closes.
BRACES = Markers("{", "}", (ord("{"), ord("}")))
THOUGHT = "{\nHm.\n}\n\nYes."


@pytest.fixture
def thinker(make_server: MakeServer) -> Server:
    server = make_server()
    server.prompts.markers = BRACES
    server.prompts.thought = Thought.FREE
    server.prompts.knows_thinking = True
    server.engine.answer = THOUGHT
    return server


def message(server: Server, **fields: Any) -> dict[str, Any]:
    answer = server.chat(**fields)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]


def test_an_answer_has_its_reasoning_apart(thinker: Server) -> None:
    answer = thinker.chat().json()
    said = answer["choices"][0]["message"]
    assert said == {
        "role": "assistant",
        "content": "Yes.",
        "refusal": None,
        "reasoning_content": "Hm.",
    }
    usage = answer["usage"]
    assert usage["completion_tokens"] == len(THOUGHT) + 1
    assert usage["completion_tokens_details"] == {"reasoning_tokens": len("{\nHm.\n}")}


@pytest.mark.parametrize("more", [{}, {"logprobs": True}, {"n": 2}], ids=str)
def test_a_stream_has_it_as_it_comes(thinker: Server, more: dict[str, Any]) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = thinker.events(stream_options=options, **more)
    last = events[-2]["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert last == len("{\nHm.\n}") * more.get("n", 1)
    so_far = [event["usage"]["completion_tokens_details"] for event in events[:-1]]
    counts = [details["reasoning_tokens"] for details in so_far]
    assert counts == sorted(counts)
    assert counts[1] < counts[-1] == last
    deltas = [
        choice["delta"]
        for event in events[:-1]
        for choice in event["choices"]
        if choice["index"] == 0
    ]
    pieces = [delta["reasoning_content"] for delta in deltas if "reasoning_content" in delta]
    assert pieces == ["H", "m", "."]
    said = [delta for delta in deltas if delta.get("content")]
    assert [delta["content"] for delta in said] == ["Y", "e", "s", "."]
    assert deltas.index(said[0]) > max(deltas.index({"reasoning_content": p}) for p in pieces)


def test_log_probabilities_are_of_every_token(thinker: Server) -> None:
    choice = thinker.chat(logprobs=True).json()["choices"][0]
    tokens = [entry["token"] for entry in choice["logprobs"]["content"]]
    assert "".join(tokens) == THOUGHT


def test_reasoning_that_the_prompt_has_begun(thinker: Server) -> None:
    thinker.prompts.thought = Thought.BEGUN
    thinker.engine.answer = THOUGHT[2:]
    said = message(thinker)
    assert (said["reasoning_content"], said["content"]) == ("Hm.", "Yes.")


@pytest.mark.parametrize("tokens", [1, 3, 6])
def test_a_limit_ends_it_inside(thinker: Server, tokens: int) -> None:
    answer = thinker.chat(max_tokens=tokens).json()
    said = answer["choices"][0]["message"]
    assert said["content"] == ("" if tokens == 1 else None)
    assert said.get("reasoning_content", "") == "Hm."[: tokens - 2 if tokens > 1 else 0]
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": tokens}


@pytest.mark.parametrize("answer", ["Yes.", "Yes: {x}"])
def test_an_answer_that_does_not_think(thinker: Server, answer: str) -> None:
    thinker.engine.answer = answer
    found = thinker.chat().json()
    assert found["choices"][0]["message"]["content"] == answer
    assert "reasoning_content" not in found["choices"][0]["message"]
    assert found["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}


def test_a_prompt_that_has_closed_it(thinker: Server) -> None:
    thinker.prompts.thought = Thought.OVER
    found = thinker.chat().json()
    assert found["choices"][0]["message"]["content"] == THOUGHT
    assert found["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}


def test_a_model_without_markers_counts_nothing(make_server: MakeServer) -> None:
    assert "completion_tokens_details" not in make_server().chat().json()["usage"]


@pytest.mark.parametrize("stream", [False, True])
def test_it_is_left_out_and_counted(thinker: Server, stream: bool) -> None:
    if stream:
        events = thinker.events(include_reasoning=False, stream_options={"include_usage": True})
        assert not any("reasoning_content" in json.dumps(event) for event in events)
        usage = events[-2]["usage"]
    else:
        answer = thinker.chat(include_reasoning=False).json()
        said, usage = answer["choices"][0]["message"], answer["usage"]
        assert said == {"role": "assistant", "content": "Yes.", "refusal": None}
    assert usage["completion_tokens_details"] == {"reasoning_tokens": len("{\nHm.\n}")}


def test_it_is_left_where_it_was(thinker: Server) -> None:
    answer = thinker.chat(separate_reasoning=False).json()
    assert answer["choices"][0]["message"]["content"] == THOUGHT
    assert "reasoning_content" not in answer["choices"][0]["message"]
    details = answer["usage"]["completion_tokens_details"]
    assert details == {"reasoning_tokens": len("{\nHm.\n}")}


@pytest.mark.parametrize(
    ("stop", "reasoning", "content"),
    [
        ("m", "H", None),
        ("es", "Hm.", "Y"),
        ("}", "Hm.", None),  # a marker, by its name
        ("}\n\nY", "Hm.", None),
        ("\n}", "Hm.", None),
        ("x", "Hm.", "Yes."),
    ],
)
def test_stop_texts_end_both(
    thinker: Server, stop: str, reasoning: str, content: str | None
) -> None:
    said = message(thinker, stop=stop)
    assert (said["reasoning_content"], said["content"]) == (reasoning, content)


def test_what_is_answered_can_be_sent_back(thinker: Server) -> None:
    thinker.prompts.template_reads = frozenset({"reasoning_content"})
    said = message(thinker)
    asked = [*chat_body()["messages"], said, {"role": "user", "content": "Sure?"}]
    answer = thinker.chat(messages=asked)
    assert answer.status_code == 200
    assert "x-saccade-ignored-fields" not in answer.headers
    assert b"<assistant>(Hm.)Yes." in bytes(thinker.engine.requests[-1].tokens)


def test_a_plain_completion_is_all_text(thinker: Server) -> None:
    answer = thinker.http.post("/v1/completions", json={"prompt": "{", "max_tokens": 50}).json()
    assert answer["choices"][0]["text"] == THOUGHT
    assert "completion_tokens_details" not in answer["usage"]


def test_models_say_what_stands_around_it(thinker: Server) -> None:
    card = thinker.http.get("/v1/models").json()["data"][0]
    assert card["reasoning_markers"] == ["{", "}"]


# How much to think.
def prompt_of(server: Server, **fields: Any) -> str:
    answer = server.chat(**fields)
    assert answer.status_code == 200, answer.text
    return bytes(server.engine.requests[-1].tokens).decode()


@pytest.mark.parametrize("switch", ["enable_thinking", "thinking"])
@pytest.mark.parametrize(
    ("fields", "value"),
    [
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "enabled"}}, True),
        ({"thinking": False}, False),
        ({"reasoning_effort": "none"}, False),
    ],
)
def test_other_servers_fields_turn_the_switch(
    thinker: Server, switch: str, fields: dict[str, Any], value: bool
) -> None:
    thinker.prompts.template_variables = (switch,)
    assert prompt_of(thinker, **fields).startswith(f"({switch}: {value})<user>")
    both = fields | {"chat_template_kwargs": {switch: value}}
    assert prompt_of(thinker, **both).startswith(f"({switch}: {value})<user>")
    answer = thinker.chat(**fields, chat_template_kwargs={switch: not value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == next(iter(fields))


def test_an_effort_is_a_variable_of_the_template(thinker: Server) -> None:
    thinker.prompts.template_variables = ("reasoning_effort",)
    for effort in ("none", "high"):
        wanted = f"(reasoning_effort: {effort})<user>"
        assert prompt_of(thinker, reasoning_effort=effort).startswith(wanted)


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_effort": "none"},
        {"reasoning_effort": "high"},
        {"thinking": {"type": "enabled"}},
        {"thinking": {"type": "disabled"}},
        {"reasoning": {"effort": "none"}},
        {"thinking_budget": 0},
    ],
    ids=str,
)
def test_a_model_that_cannot_be_told_refuses(thinker: Server, fields: dict[str, Any]) -> None:
    answer = thinker.chat(**fields)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", next(iter(fields)))


# Grammars begin behind it.
GRAMMAR = Grammar(GrammarKind.JSON_OBJECT, "x")


@pytest.mark.parametrize(
    ("markers", "begun", "thinking"),
    [
        (TOKENS, False, Thinking(1, 2)),
        (TOKENS, True, Thinking(None, 2)),
        (SPECIAL, True, Thinking(None, 2)),
        (TEXT, False, None),
    ],
)
def test_a_grammar_begins_behind_it(
    markers: Markers, begun: bool, thinking: Thinking | None
) -> None:
    made = MayThink(markers, begun, Telling.APART).grammar(GRAMMAR, "x")
    assert (made.thinking, made.source) == (thinking, GRAMMAR.source)


def test_a_grammar_that_nothing_tells_to_begin_is_refused(thinker: Server) -> None:
    thinker.prompts.markers, thinker.prompts.thought = Markers("{{", "}}"), Thought.BEGUN
    answer = thinker.chat(response_format={"type": "json_object"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", "response_format")
    thinker.prompts.thought = Thought.FREE  # it holds at once
    assert thinker.chat(response_format={"type": "json_object"}).status_code == 200
    (request,) = thinker.engine.requests
    assert request.grammar is not None
    assert request.grammar.thinking is None


@pytest.mark.parametrize("thought", [Thought.FREE, Thought.BEGUN, Thought.OVER])
def test_a_request_for_a_grammar_says_what_stands_before_it(
    thinker: Server, thought: Thought
) -> None:
    thinker.prompts.thought = thought
    fields = {"structured_outputs": {"choice": ["a", "b"]}, "min_tokens": 5}
    answer = thinker.chat(**fields)
    if thought is Thought.OVER:
        assert answer.json()["error"]["param"] == "min_tokens"
        return
    assert answer.status_code == 200
    (request,) = thinker.engine.requests
    opens, closes = BRACES.tokens or (0, 0)
    wanted = Thinking(None if thought is Thought.BEGUN else opens, closes)
    assert request.grammar is not None
    assert request.grammar.thinking == wanted


def test_a_plain_completion_is_held_at_once(thinker: Server) -> None:
    body = {"prompt": "{", "max_tokens": 50, "structured_outputs": {"choice": ["a", "b"]}}
    assert thinker.http.post("/v1/completions", json=body).status_code == 200
    (request,) = thinker.engine.requests
    assert request.grammar is not None
    assert request.grammar.thinking is None
