"""Fields without effect are named: in a header of the answer, and once in the log."""

import logging

import pytest

from saccade_server.api.body.noeffect import MOST_LOGGED, NO_EFFECT, IgnoredLog, header
from saccade_testing.api.bodies import PICTURE, image_messages
from saccade_testing.api.server import Server

NAMES = "x-saccade-ignored-fields"


def ignored(server, **fields):
    answer = server.chat(**fields)
    assert answer.status_code == 200, answer.text
    return answer.headers.get(NAMES, "")


def test_what_counts_is_not_named(server: Server):
    assert ignored(server, temperature=0, stop=["x"], seed=1, interventions=[]) == ""
    assert ignored(server, user=None, future=None) == ""
    assert ignored(server, tools=[], typical_p=1.0, tool_choice="auto", store=False) == ""


def test_a_field_without_a_name_is_named():
    assert header(["", "a"]) == "?, a"


@pytest.mark.parametrize("path", sorted(NO_EFFECT))
def test_what_never_counts_is_named(server: Server, path):
    owner, _, name = path.rpartition(".")
    if owner == "stream_options":
        answer = server.chat(stream=True, stream_options={name: True})
        assert answer.headers[NAMES] == path
    elif not owner:
        assert ignored(server, **{name: "x"}) == name


def test_the_page_of_requests_lists_them(pytestconfig):
    page = (pytestconfig.rootpath / "docs" / "requests.md").read_text()
    assert [name for name in NO_EFFECT if f"`{name}`" not in page] == []


def test_unknown_fields_are_named_wherever_they_are(server: Server):
    (message,) = image_messages(PICTURE)
    message["id"] = 7
    image, text = message["content"]
    image["cache_control"] = image["image_url"]["id"] = text["cache_control"] = 1
    image["image_url"]["detail"] = "low"
    call = {"index": 0, "function": {"name": "f", "strict": True}}
    replayed = {"role": "assistant", "content": "x", "tool_calls": [call], "name": "ann"}
    found = ignored(
        server,
        messages=[message, replayed, {**message, "id": 8}],
        future={"x": 1},
        tools=[{"type": "function", "function": {"name": "f", "returns": {}}, "cached": 1}],
        tool_choice="none",
    )
    assert found.split(", ") == [
        "future",
        "tools[].cached",
        "tools[].function.returns",
        "messages[].id",
        "messages[].content[].cache_control",
        "messages[].content[].image_url.id",
        "messages[].content[].image_url.detail",
        "messages[].name",
        "messages[].tool_calls[].index",
        "messages[].tool_calls[].function.strict",
        "tools",
    ]


def test_fields_on_the_wrong_message_are_named(server: Server):
    message = {"role": "user", "content": "x", "refusal": "y", "tool_call_id": "z"}
    found = ignored(server, messages=[message])
    assert found == "messages[].refusal, messages[].tool_call_id"


def test_every_route_and_form_of_answer(server: Server):
    odd = {"future": 1}
    chat = {"messages": [{"role": "user", "content": "x"}]}
    for path, body in (
        ("/v1/chat/completions", {**chat, "stream": True}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/completions", {"prompt": "x", "stream": True}),
        ("/tokenize", {"prompt": "x"}),
        ("/tokenize", chat),
        ("/detokenize", {"tokens": [1]}),
    ):
        answer = server.http.post(path, json=body | odd)
        assert answer.headers[NAMES] == "future", path
    nested = {"interventions": [], "messages": [{"role": "user", "content": "x", "id": 1}]}
    answer = server.http.post("/v1/interventions/validate", json=nested)
    assert answer.headers[NAMES] == "messages[].id"


def test_the_header_is_safe_and_bounded(server: Server):
    found = ignored(server, **{"a\r\nb: c, é" * 20: 1, **{f"field{i}": 1 for i in range(40)}})
    assert len(found) < 16 * 82 + 20
    assert found.isascii()
    assert "\n" not in found
    assert found.startswith("a??b??c??")
    assert found.endswith("and-25-more")
    assert header([]) == ""


def test_the_log_has_every_name_once(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    log = IgnoredLog()
    log.note(["a", "b\n", "messages[].b-1"])
    log.note(["b\n", "a", "what is in my photo?"])
    log.note(["c", "a"])
    assert len(caplog.messages) == 2
    assert "a, ?an-odd-name?, messages[].b-1 " in caplog.messages[0]
    assert "c " in caplog.messages[1]
    for index in range(MOST_LOGGED):
        log.note([f"name{index}"])
    assert len(caplog.messages) == 2 + MOST_LOGGED - 4
