"""What is too long is refused before it costs anything, and names that nothing reads."""

import asyncio
import json
import threading

import httpx2
import pytest

from saccade_server.api import answers
from saccade_server.api.body import parsing
from saccade_server.api.body.schemas import ChatRequest, CompletionRequest
from saccade_server.api.errors import BadRequest
from saccade_server.api.images.fetch import ImageFetcher
from saccade_testing.api.bodies import image_messages
from saccade_testing.api.server import MakeServer, Server

TEXT_PART = {"type": "text", "text": "x"}


@pytest.fixture
def refused(server: Server, monkeypatch: pytest.MonkeyPatch):
    """Post a body that must be refused before a worker, and return its error."""

    def post(path, body):
        with monkeypatch.context() as patch:
            patch.setattr(parsing, "OFF_LOOP_BYTES", 10**9)
            patch.setattr(type(server.prompts), "chat", _never)
            patch.setattr(type(server.prompts), "completion", _never)
            response = server.http.post(path, json=body)
        assert response.status_code == 400, response.text
        return response.json()["error"]

    return post


def _never(*args):
    raise AssertionError("this prompt should not have been processed")


LONG = [
    ("/v1/completions", {"prompt": [1] * 512}, "prompt"),
    ("/v1/completions", {"prompt": "x" * 513}, "prompt"),
    ("/v1/completions", {"prompt": ["x", "x" * 513]}, "prompt[1]"),
    ("/v1/completions", {"prompt": [[1], [1] * 512]}, "prompt[1]"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 513}]}, "messages"),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 200}] * 3}]},
        "messages",
    ),
    (
        "/v1/interventions/validate",
        {"interventions": [], "messages": [{"role": "user", "content": "x" * 300}] * 2},
        "messages",
    ),
    ("/v1/interventions/validate", {"interventions": [], "prompt_tokens": [1] * 512}, None),
]


@pytest.mark.parametrize(("path", "body", "param"), LONG, ids=lambda value: str(value)[:60])
def test_what_cannot_fit_is_not_processed(refused, path, body, param):
    error = refused(path, body)
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == (param or "prompt_tokens")


def test_a_model_without_a_longest_token_decides_by_the_tokens(
    server: Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server.prompts, "max_token_chars", None, raising=False)
    body = {"prompt": "x" * 600}
    error = server.http.post("/v1/completions", json=body).json()["error"]
    assert error["message"].startswith("The prompt has 600 tokens")


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{}] * 1025},
        {"messages": [{"role": "user", "content": [TEXT_PART] * 2049}] * 2},
        {"messages": [], "logit_bias": {str(i): "x" for i in range(1025)}},
        {"prompt": ["x"] * 65},
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_lengths_come_before_validation(server: Server, monkeypatch: pytest.MonkeyPatch, fields):
    def never(*args, **kwargs):
        raise AssertionError("validated")

    completion = "prompt" in fields
    path = "/v1/completions" if completion else "/v1/chat/completions"
    model = CompletionRequest if completion else ChatRequest
    monkeypatch.setattr(model, "model_validate", never)
    response = server.http.post(path, json=fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] in fields


def test_large_bodies_are_parsed_by_the_workers(server: Server, monkeypatch: pytest.MonkeyPatch):
    threads = []
    honest = parsing.load

    def watched(body):
        threads.append(threading.current_thread().name)
        return honest(body)

    monkeypatch.setattr(parsing, "load", watched)
    assert server.chat(user="x" * 100_000).status_code == 200
    assert server.chat(user="x").status_code == 200
    assert [name.startswith("saccade-prompt") for name in threads] == [True, False]


def test_only_so_many_unknown_fields(server: Server):
    error = server.chat(**{f"x{i}": 1 for i in range(101)}).json()["error"]
    assert "100 unknown fields" in error["message"]
    assert server.chat(**{f"x{i}": 1 for i in range(100)}).status_code == 200


MISPLACED = [
    ({"messages": [{"role": "user", "content": "x", "interventions": []}]}, "messages[0]"),
    ({"messages": [{"role": "user", "content": "x", "Intervention": []}]}, "messages[0]"),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "x", "interventons": 1}]}
            ]
        },
        "messages[0].content[0]",
    ),
    (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "data:x", "interventions": 1}}
                    ],
                }
            ]
        },
        "messages[0].content[0].image_url",
    ),
    ({"metadata": {"interventions": "var"}}, "metadata"),
]


@pytest.mark.parametrize(("fields", "where"), MISPLACED, ids=lambda value: str(value)[-40:])
def test_interventions_in_the_wrong_place(server: Server, fields, where):
    response = server.chat(**fields)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "intervention_unknown_field")
    path, _, name = error["param"].rpartition(".")
    assert path == where
    assert name in json.dumps(fields)


def test_metadata_may_name_a_plan(server: Server):
    assert server.chat(metadata={"plan": "pro", "method": "card"}).status_code == 200


def test_one_bad_image_stops_the_other_fetches(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
):
    server = make_server(allow_image_urls=True)
    ended = threading.Event()

    async def fetch(self, url, param, budget):
        if url.endswith("bad"):
            raise BadRequest("bad", code="image_fetch_failed", param=param)
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    monkeypatch.setattr(ImageFetcher, "fetch", fetch)
    urls = ["http://x.example/good", "http://x.example/bad"]
    error = server.chat(messages=image_messages(*urls)).json()["error"]
    assert error["code"] == "image_fetch_failed"
    assert ended.is_set()


def test_all_images_of_a_request_share_a_budget(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
):
    server = make_server(allow_image_urls=True, max_fetched_bytes=10)

    async def fetch(self, url, param, budget):
        budget.take(6, param)
        return b"x" * 6

    monkeypatch.setattr(ImageFetcher, "fetch", fetch)
    messages = image_messages("http://x.example/1", "http://x.example/2")
    error = server.chat(messages=messages).json()["error"]
    assert (error["code"], error["param"]) == (
        "image_too_large",
        "messages[0].content[1].image_url",
    )


def test_a_rehearsal_ends_with_its_client(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch):
    server = make_server(allow_image_urls=True)
    ended = threading.Event()

    async def fetch(self, url, param, budget):
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    monkeypatch.setattr(ImageFetcher, "fetch", fetch)
    body = {"interventions": [], "messages": image_messages("http://x.example/1")}
    with pytest.raises(httpx2.ReadTimeout):
        server.http.post("/v1/interventions/validate", json=body, timeout=0.3)
    assert ended.wait(5)


def test_prompts_have_threads_of_their_own_until_the_end(make_server: MakeServer):
    server = make_server()
    threads = []
    honest = server.prompts.chat

    def watched(messages, **options):
        threads.append(threading.current_thread())
        return honest(messages, **options)

    server.prompts.chat = watched
    assert server.chat().status_code == 200
    server.stop()
    (thread,) = threads
    assert thread.name.startswith("saccade-prompt")
    thread.join(5)
    assert not thread.is_alive()


def test_the_system_fingerprint_is_made_once(server: Server, monkeypatch: pytest.MonkeyPatch):
    made = []
    honest = answers.fingerprint

    def counted(interventions):
        made.append(interventions)
        return honest(interventions)

    monkeypatch.setattr(answers, "fingerprint", counted)
    entry = {"method": "pasta", "highlight": ["H"], "layers": [1]}
    assert len(server.events(interventions=[entry])) > 10
    assert len(made) == 1
