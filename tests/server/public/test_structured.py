"""P13: answers that follow what the request says they must be, on a model that runs.

From langchain-ai/langchain#23814, vllm-project/vllm#19493 and #15073.
"""

import functools
import json
import re

import jsonschema
import pytest

from saccade_testing.public import asking, pictures

HI = {"role": "user", "content": "Hi"}
COLORS = ["red", "green", "blue", "yellow", "purple", "white"]
SHAPES = ["circle", "square", "triangle", "cross", "diamond"]
THING = {
    "type": "object",
    "properties": {"color": {"enum": COLORS}, "shape": {"enum": SHAPES}},
    "required": ["color", "shape"],
    "additionalProperties": False,
}
TWO = {"type": "array", "items": THING, "minItems": 2, "maxItems": 2}
NAMED = rf"a ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})"


def schema(value):
    return {"type": "json_schema", "json_schema": {"name": "thing", "schema": value}}


def compact(value):
    return {"structured_outputs": {"json": value, "disable_any_whitespace": True}}


def valid(text, value):
    jsonschema.validate(json.loads(text), value)
    return True


FORMS = {
    "schema": (
        {"response_format": schema(THING), "max_tokens": 400},
        lambda text: valid(text, THING),
    ),
    "compact": (compact(TWO), lambda text: valid(text, TWO) and re.sub(r"\s", "", text) == text),
    "guided": ({"guided_json": THING, "max_tokens": 400}, lambda text: valid(text, THING)),
    "regex": ({"guided_regex": NAMED}, lambda text: re.fullmatch(NAMED, text)),
    "choice": ({"guided_choice": SHAPES}, lambda text: text in SHAPES),
}


@pytest.fixture(scope="module")
def question():
    return asking.user(asking.image(pictures.URL), asking.text(asking.QUESTION))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("how", ["greedy", "drawn"])
def test_an_answer_is_what_was_asked_for(demo, question, name, how):
    fields, fits = FORMS[name]
    more = {"n": 3, "temperature": 1.5, "seed": 7} if how == "drawn" else {}
    answer = demo.chat(question, **({"max_tokens": 120} | fields | more))
    for choice in asking.answered(answer)["choices"]:
        receipt = choice["structured_output"]
        assert fits(choice["message"]["content"]), choice
        assert (choice["finish_reason"], receipt["complete"]) == ("stop", True)
        assert 0 <= receipt["forced_tokens"] < receipt["constrained_tokens"]


def test_any_object(demo, question):
    answer = demo.chat(question, response_format={"type": "json_object"}, max_tokens=60)
    (choice,) = asking.answered(answer)["choices"]
    assert choice["structured_output"]["kind"] == "json_object"
    assert choice["structured_output"]["complete"] == (choice["finish_reason"] == "stop")
    text = choice["message"]["content"]
    assert text.startswith("{") if choice["finish_reason"] == "length" else valid(text, {})


def test_what_max_tokens_cuts_off_says_so(demo, question):
    (choice,) = asking.answered(demo.chat(question, max_tokens=5, **compact(TWO)))["choices"]
    receipt = choice["structured_output"]
    assert (choice["finish_reason"], receipt["complete"]) == ("length", False)
    assert (receipt["kind"], receipt["constrained_tokens"]) == ("json_schema", 5)


def test_tags_in_free_text(demo, question):
    """The model's own first words are the trigger."""
    content = {"type": "json_schema", "json_schema": THING}
    tags = {
        "type": "triggered_tags",
        "triggers": ["There"],
        "tags": [{"begin": "There is ", "content": content, "end": "!"}],
        "stop_after_first": True,
    }
    fields = {"response_format": {"type": "structural_tag", "format": tags}, "max_tokens": 400}
    (choice,) = asking.answered(demo.chat(question, **fields))["choices"]
    inside = re.fullmatch("There is (.*)!", choice["message"]["content"], re.S)
    assert valid(inside[1], THING)
    assert choice["structured_output"]["kind"] == "structural_tag"


def test_a_stream_says_the_same(demo, question):
    fields = {"max_tokens": 120, **compact(THING)}
    whole = asking.answered(demo.chat(question, **fields))["choices"][0]
    streamed = demo.stream(question, **fields)
    assert streamed.text == whole["message"]["content"]
    *early, last = streamed.choices
    assert not any("structured_output" in choice for choice in early)
    assert last["structured_output"] == whole["structured_output"]


def test_each_prompt_and_each_copy_follows_for_itself(demo):
    fields = {"n": 2, "temperature": 1, "seed": 3, "max_tokens": 40, "guided_regex": NAMED}
    choices = asking.answered(demo.complete(["There is", "I see"], **fields))["choices"]
    assert len(choices) == 4
    assert all(re.fullmatch(NAMED, choice["text"]) for choice in choices)
    echoed = asking.answered(demo.complete("There is ", echo=True, guided_choice=["x"]))
    assert echoed["choices"][0]["text"] == "There is x"


def test_what_follows_a_message_that_is_continued(demo, question):
    begun = '{"color":"'
    fields = {"continue_final_message": True, "guided_regex": f'({"|".join(COLORS)})"\\}}'}
    text = asking.content(demo.chat(question, asking.said(begun), **fields))
    assert json.loads(begun + text)["color"] in COLORS


def test_neighbours_change_nothing(demo, question):
    """Free answers and held ones in one batch, each as it is alone."""
    asked = [
        *({}, {"guided_choice": SHAPES}, {"guided_regex": NAMED}, {"logprobs": True}),
        *({"max_tokens": 120, **compact(TWO)}, {"logprobs": True, "guided_choice": COLORS}),
    ]

    def ask(fields):
        return asking.content(demo.chat(question, **fields))

    alone = [ask(fields) for fields in asked]
    together = demo.at_once([functools.partial(ask, fields) for fields in asked * 2])
    assert together == alone * 2


def test_log_probabilities_are_those_of_before(demo, question):
    free = asking.answered(demo.chat(question, logprobs=True, top_logprobs=20, max_tokens=1))
    (first,) = free["choices"][0]["logprobs"]["content"]
    rival = first["top_logprobs"][5]
    assert rival["token"].strip()
    fields = {"guided_choice": [rival["token"]], "logprobs": True, "top_logprobs": 20}
    held = asking.answered(demo.chat(question, **fields))["choices"][0]["logprobs"]["content"][0]
    likeliest = {entry["token"]: entry["logprob"] for entry in held["top_logprobs"]}
    assert likeliest == pytest.approx(
        {entry["token"]: entry["logprob"] for entry in first["top_logprobs"]}, abs=1e-3
    )


def test_a_stop_text_ends_it_early(demo, question):
    answer = asking.answered(demo.chat(question, stop='"shape"', max_tokens=60, **compact(THING)))
    (choice,) = answer["choices"]
    assert re.fullmatch('{"color":"[a-z]+",', choice["message"]["content"])
    assert (choice["finish_reason"], choice["structured_output"]["complete"]) == ("stop", False)


@pytest.mark.parametrize("method", ["vcd", "pai", "sgrs", "dola", "m3id"])
def test_interventions_act_while_a_grammar_holds(demo, question, method):
    fields = {"interventions": [{"method": method}], "max_tokens": 120, **compact(TWO)}
    answer = asking.answered(demo.chat(question, **fields))
    (choice,) = answer["choices"]
    assert valid(choice["message"]["content"], TWO)
    assert choice["structured_output"]["complete"]
    assert answer["interventions_applied"][0]["status"] == "applied"


def test_an_answer_that_may_not_end_yet(demo):
    fields = {"min_tokens": 9, "max_tokens": 20, "guided_regex": "[ab]"}
    assert "9" in asking.refused(demo.chat(HI, **fields), "min_tokens", "grammar_stuck")
    streamed = demo.stream(HI, **fields)
    error = next(json.loads(event)["error"] for event in streamed.events if '"error"' in event)
    assert (error["code"], error["param"]) == ("grammar_stuck", "min_tokens")
    assert asking.content(demo.chat(HI, guided_choice=["ok"])) == "ok"
