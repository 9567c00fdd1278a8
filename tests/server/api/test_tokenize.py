"""POST /tokenize and /detokenize."""

import pytest

from saccade_testing.api.bodies import MODEL, PICTURE, chat_body, image_messages
from saccade_testing.api.server import MakeServer, Server


def tokenize(server, **body):
    return server.http.post("/tokenize", json=body)


def test_a_prompt(server: Server):
    answer = tokenize(server, model=MODEL, prompt="Hé").json()
    assert answer == {
        "count": 3,
        "max_model_len": 512,
        "tokens": list("Hé".encode()),
        "token_strs": None,
    }
    named = tokenize(server, prompt="Hi", return_token_strs=True).json()
    assert named["token_strs"] == ["<72>", "<105>"]
    bare = tokenize(server, prompt="Hi", add_special_tokens=False).json()
    assert bare["tokens"] == [*b"Hi", 255]  # the fake's mark of a prompt without special tokens


def test_a_conversation_has_the_tokens_of_a_chat(server: Server):
    messages = image_messages(PICTURE)
    answer = tokenize(server, messages=messages).json()
    assert server.chat(messages=messages).status_code == 200
    assert answer["tokens"] == list(server.engine.requests[-1].tokens)
    assert answer["count"] == len(answer["tokens"])
    open_end = tokenize(server, messages=messages, add_generation_prompt=False).json()
    assert open_end["count"] < answer["count"]
    varied = tokenize(server, messages=messages, chat_template_kwargs={"mood": "dry"}).json()
    assert varied["count"] > answer["count"]


def test_more_tokens_than_the_model_takes_are_counted(server: Server):
    answer = tokenize(server, prompt="x" * 512)
    assert answer.status_code == 200
    assert answer.json()["count"] == 512


def test_a_whole_chat_can_be_counted(server: Server):
    """What says nothing about the prompt is no reason to refuse it, and is named."""
    body = chat_body(tools=[], interventions=[], temperature=0.5)
    answer = server.http.post("/tokenize", json=body)
    assert answer.status_code == 200, answer.text
    named = set(answer.headers["x-saccade-ignored-fields"].split(", "))
    assert {"temperature", "interventions"} <= named
    assert "tools" not in named


def test_back_to_text(server: Server):
    body = {"tokens": list("Hé".encode())}
    assert server.http.post("/detokenize", json=body).json() == {"prompt": "Hé"}
    assert server.http.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        ("/tokenize", {}, "invalid_value", "prompt"),
        ("/tokenize", {"prompt": "x", "messages": []}, "invalid_value", "messages"),
        ("/tokenize", {"prompt": 5}, "invalid_value", "prompt"),
        ("/tokenize", {"prompt": "x", "model": "y"}, "model_not_found", "model"),
        ("/tokenize", {"prompt": "x" * 600}, "context_length_exceeded", "prompt"),
        (
            "/tokenize",
            {"prompt": "x", "enable_thinking": False},
            "invalid_value",
            "enable_thinking",
        ),
        (
            "/tokenize",
            {"messages": [{"role": "user", "content": "x"}], "add_special_tokens": True},
            "invalid_value",
            "add_special_tokens",
        ),
        ("/tokenize", {"prompt": "x", "tools": [{}]}, "missing_field", "tools[0].type"),
        (
            "/tokenize",
            {"messages": [{"role": "user", "content": "x"}], "chat_template": "{{ x }}"},
            "unsupported_parameter",
            "chat_template",
        ),
        (
            "/tokenize",
            {"prompt": "x", "truncate_prompt_tokens": 1},
            "unsupported_parameter",
            "truncate_prompt_tokens",
        ),
        ("/detokenize", {}, "missing_field", "tokens"),
        ("/detokenize", {"tokens": [300]}, "invalid_value", "tokens"),
        ("/detokenize", {"tokens": [-1]}, "invalid_value", "tokens[0]"),
        ("/detokenize", {"tokens": [1] * 512}, "context_length_exceeded", "tokens"),
    ],
)
def test_refusals(server: Server, path, body, code, param):
    answer = server.http.post(path, json=body)
    assert answer.status_code == (404 if code == "model_not_found" else 400)
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param)


def test_keys_are_asked_for(make_server: MakeServer):
    server = make_server(api_keys=("user",))
    for path, body in (("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [1]})):
        assert server.http.post(path, json=body).status_code == 401
