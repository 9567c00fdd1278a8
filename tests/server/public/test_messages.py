"""M01 to M20: conversations as clients replay them."""

import pytest

from saccade_testing.public import asking, pictures

HI = {"role": "user", "content": "Hi"}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


REPLAYED = {
    # lmstudio-ai/lmstudio-bug-tracker#261, mistralai/mistral-common#324, vllm-project/vllm#21089
    "M01-null": assistant(None),
    "M01-absent": {"role": "assistant"},
    "M02-empty": assistant(""),
    "M02-no-parts": assistant([]),
    # vllm-project/vllm#10463: whatever an SDK adds to the answer's own message
    "M05-null-fields": assistant(
        None,
        refusal=None,
        annotations=None,
        audio=None,
        function_call=None,
        tool_calls=None,
        reasoning_content=None,
    ),
    "M05-empty-fields": assistant("", annotations=[], tool_calls=[]),
}


@pytest.mark.parametrize("name", REPLAYED)
def test_a_message_without_content_is_one_without_text(demo, name):
    given, empty = (
        demo.see("A red circle.", message, "Is it red?")
        for message in (REPLAYED[name], assistant(""))
    )
    assert given.distance(empty) < 1e-5
    assert given.prompt_tokens == empty.prompt_tokens
    assert (
        given.prompt_tokens < demo.see("A red circle.", assistant("a"), "Is it red?").prompt_tokens
    )


def test_a_refusal_is_replayed_as_what_was_said(demo):
    """A message holds a refusal in place of its content."""
    refusal = demo.see(HI, {"role": "assistant", "content": None, "refusal": "No."}, HI)
    part = demo.see(HI, assistant([{"type": "refusal", "refusal": "No."}]), HI)
    plain = demo.see(HI, assistant("No."), HI)
    assert refusal.distance(plain) < 1e-5
    assert part.distance(plain) < 1e-5
    assert refusal.prompt_tokens == part.prompt_tokens == plain.prompt_tokens


def test_the_answers_own_message_can_be_sent_back(demo):
    """M05. From vllm-project/vllm#10463."""
    first = asking.user(asking.image(pictures.URL), asking.text(asking.QUESTION))
    message = asking.answered(demo.chat(first))["choices"][0]["message"]
    dump = message | {"annotations": None, "audio": None, "function_call": None, "tool_calls": None}
    wanted = demo.see(first, assistant(message["content"]), "Where is the red circle?")
    assert wanted.text == "At the top left."
    for again in (message, dump):
        assert demo.see(first, again, "Where is the red circle?").distance(wanted) < 1e-5


@pytest.mark.parametrize("order", ["image last", "image between", "image first"])
def test_text_parts_are_neither_dropped_nor_glued_together(demo, order):
    """M06, M22: this template writes images first and texts behind them. A line each, as vLLM joins
    them for templates that take one text. From Blaizzy/mlx-vlm#1137, waybarrios/vllm-mlx#12,
    vllm-project/vllm#9358."""
    image, where, what = asking.image(pictures.URL), asking.text("Where is"), asking.text("it?")
    parts = {
        "image last": [where, what, image],
        "image between": [where, image, what],
        "image first": [image, where, what],
    }[order]
    whole = demo.see(asking.user(image, asking.text("Where is\nit?")))
    cut = demo.see(asking.user(*parts))
    assert cut.prompt_tokens == whole.prompt_tokens
    assert cut.distance(whole) < 1e-5


SYSTEM = {"role": "system", "content": "Be brief."}
OPENINGS = {
    # vllm-project/vllm#5649, 0xPlaygrounds/rig#1362
    "M07-parts": [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}],
    "M08-developer": [{"role": "developer", "content": "Be brief."}],  # TheR1D/shell_gpt#717
    "M15-named": [SYSTEM | {"name": "rules"}],
}


@pytest.mark.parametrize("name", OPENINGS)
def test_a_system_message_in_any_form_is_the_same(demo, name):
    wanted = demo.see(SYSTEM, "Is it red?")
    given = demo.see(*OPENINGS[name], "Is it red?")
    assert given.distance(wanted) < 1e-5
    assert given.prompt_tokens == wanted.prompt_tokens > demo.see("Is it red?").prompt_tokens


@pytest.mark.parametrize("order", ["middle", "two", "last", "alone"])
def test_a_system_message_may_stand_anywhere(demo, order):
    """M08. From TheR1D/shell_gpt#717."""
    messages = {
        "middle": [HI, SYSTEM, HI],
        "two": [SYSTEM, SYSTEM, HI],
        "last": [HI, SYSTEM],
        "alone": [SYSTEM],
    }[order]
    without = sum(item is HI for item in messages) * demo.see(HI).prompt_tokens
    assert demo.see(*messages).prompt_tokens > min(without, 4)


@pytest.mark.parametrize("role", ["function", "assistent", "", None, 3])
def test_another_role_is_refused_with_those_that_exist(demo, role):
    """M10. From MeetKai/functionary#141."""
    answer = demo.chat(HI, {"role": role, "name": "f", "content": "1"})
    message = asking.refused(answer, "messages[1].role")
    assert all(name in message for name in ("system", "user", "assistant", "tool"))


def test_a_conversation_may_end_with_an_answer(demo):
    """M12: a new one is begun. From vllm-project/vllm#9446, openvinotoolkit/model_server#3877."""
    ended = demo.see(HI, assistant("There is"))
    assert ended.prompt_tokens > demo.see(HI).prompt_tokens
    begun = demo.continued("USER:\nHi\nASSISTANT:\nThere is</s>\nASSISTANT:\n")
    assert ended.distance(begun) < 1e-3


PREFILL = {"continue_final_message": True, "add_generation_prompt": False}


def test_a_begun_answer_is_continued(demo):
    """M11. From vllm-project/vllm#6772, ggml-org/llama.cpp#11755, InternLM/lmdeploy#2798,
    sgl-project/sglang#4226."""
    question = asking.user(asking.image(pictures.URL), asking.text(asking.QUESTION))
    whole = demo.see(question)
    begun = demo.see(question, assistant("There is a red"), **PREFILL)
    assert "There is a red" + begun.text == whole.text
    rest = whole.logprobs[-len(begun.logprobs) :]
    assert max(abs(a - b) for a, b in zip(begun.logprobs, rest, strict=True)) < 2e-3


@pytest.mark.parametrize("content", ["There is", " a red ", [{"type": "text", "text": "There is"}]])
def test_nothing_stands_between_a_begun_answer_and_its_end(demo, content):
    """M11: no blank is cut off and no end of turn is written; part by part the same prompt."""
    text = content if isinstance(content, str) else content[0]["text"]
    begun = demo.see("Is it red?", assistant(content), **PREFILL)
    assert begun.distance(demo.continued(f"USER:\nIs it red?\nASSISTANT:\n{text}")) < 1e-3


@pytest.mark.parametrize(
    "messages", [[HI], [HI, assistant("")], [HI, assistant(None)], [assistant("a"), HI]], ids=str
)
def test_without_a_begun_answer_there_is_none_to_continue(demo, messages):
    """M11."""
    asking.refused(demo.chat(*messages, **PREFILL), "messages", "invalid_prompt")


def test_an_answer_is_either_continued_or_begun(demo):
    """M11: as vLLM; a continuation alone means that nothing is begun."""
    both = {"continue_final_message": True, "add_generation_prompt": True}
    asking.refused(demo.chat(HI, assistant("There"), **both), "continue_final_message")
    alone, spelled = (
        demo.see(HI, assistant("There"), **fields)
        for fields in ({"continue_final_message": True}, PREFILL)
    )
    assert alone.distance(spelled) < 1e-5


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_an_image_belongs_to_a_user(demo, role):
    """M13, M14. From vllm-project/vllm#33925 and #43203, mistralai/mistral-common#205."""
    answer = demo.chat(HI, {"role": role, "content": [asking.image(pictures.URL)]}, HI)
    asking.refused(answer, "messages[1].content[0].image_url", says="user")


def test_unknown_fields_of_messages_and_parts_are_let_through(demo):
    """M15: and named, because they change nothing. From vllm-project/vllm#10463."""
    cached = {"cache_control": {"type": "ephemeral"}}
    image = asking.image(pictures.URL, **cached) | cached | {"uuid": None}
    odd = asking.user(
        image, asking.text(asking.QUESTION, **cached), name="ann", id=7, opts={"visible": False}
    )
    answer = demo.chat(odd, logprobs=True)
    assert asking.seen(answer).distance(demo.look(pictures.URL)) < 1e-5
    named = answer.headers["x-saccade-ignored-fields"].split(", ")
    assert {"messages[].name", "messages[].id", "messages[].opts"} <= set(named)
    assert "messages[].content[].cache_control" in named
    assert not [name for name in named if "uuid" in name]


NULLS = ["text", "image_url", "input_audio", "file", "refusal", "video_url", "uuid"]


@pytest.mark.parametrize("text", [None, "x"])
def test_a_part_with_the_fields_of_other_parts_is_what_its_type_says(demo, text):
    """SDKs that have one class for all parts write every field of it."""
    whole = dict.fromkeys(NULLS)
    image = whole | asking.image(pictures.URL) | {"text": text}
    odd = asking.user(image, whole | asking.text(asking.QUESTION))
    assert demo.see(odd).distance(demo.look(pictures.URL)) < 1e-5


EMPTY = [
    {"role": "user", "content": "Hi", "name": ""},
    {"role": "user", "content": "Hi", "tool_call_id": "", "tool_calls": [], "refusal": ""},
    {"role": "user", "content": "Hi", "name": None, "tool_call_id": None, "tool_calls": None},
]


@pytest.mark.parametrize("message", EMPTY, ids=["name", "rest", "null"])
def test_an_empty_field_of_a_message_is_none(demo, message):
    """Languages without null write every text of a message, the empty ones too."""
    assert demo.see(message).distance(demo.see(HI)) < 1e-5


@pytest.mark.parametrize("content", ["", "   \n", [{"type": "text", "text": ""}], None, []])
def test_a_user_may_say_nothing(demo, content):
    """M16. From vllm-project/vllm#21089. Only a message without content is a mistake."""
    answer = demo.chat({"role": "user", "content": content})
    if content:
        asking.answered(answer)
    elif content == "":
        assert asking.seen(demo.chat("", logprobs=True)).distance(
            demo.continued("USER:\n\nASSISTANT:\n")
        ) < 1e-3  # fmt: skip
    else:
        asking.refused(answer, "messages[0].content")


def test_the_name_of_a_placeholder_is_text(demo):
    """M17. From vllm-project/vllm#18157."""
    said = "<image>\n" + asking.QUESTION
    plain, named = demo.see(asking.QUESTION), demo.see(said)
    assert 1 < named.prompt_tokens - plain.prompt_tokens < 16
    pictured = demo.look(pictures.URL, said)
    more = pictured.prompt_tokens - demo.look(pictures.URL).prompt_tokens
    assert more == named.prompt_tokens - plain.prompt_tokens
    assert pictured.text == "There is a red circle and a blue square."


PARTS = {
    "M18-input-image": {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
    "M19-video": {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AA"}},
    "M19-audio": {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
    "M19-file": {"type": "file", "file": {"file_id": "f"}},
}


@pytest.mark.parametrize("name", PARTS)
def test_another_kind_of_part_is_refused_with_those_that_exist(demo, name):
    """From the parts that vLLM takes, NVIDIA/TensorRT-LLM#2581."""
    answer = demo.chat(asking.user(PARTS[name], asking.text("x")))
    asking.refused(answer, "messages[0].content[0]", says="image_url")


@pytest.mark.parametrize("part", [{"text": "x"}, {}])
def test_a_part_names_its_type(demo, part):
    """M19."""
    asking.refused(demo.chat(asking.user(part)), "messages[0].content[0]", says="type")


@pytest.mark.parametrize("part", ["x", None, 5, ["x"]])
def test_a_part_is_an_object(demo, part):
    """M19."""
    answer = demo.chat(asking.user(asking.text("x"), part))
    asking.refused(answer, "messages[0].content[1]", says="object")


@pytest.mark.parametrize("value", [[], {}, "Hi", None, ...], ids=repr)
def test_a_chat_needs_messages(demo, value):
    """M20. From OpenGVLab/InternVL#726."""
    asking.refused(demo.chat(messages=value), "messages")
