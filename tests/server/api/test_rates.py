"""Limits of keys: what is counted, who is refused, and what the headers say of it."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest

from saccade_server.api.access.key_file import KeyFileError
from saccade_server.api.access.keys import Key, Limits, digest_of
from saccade_server.api.access.rates import Rates, worded
from saccade_server.api.errors import BadRequest, RateLimited
from saccade_server.api.reloading import keys_file
from saccade_testing.api.bodies import MODEL, PICTURE, chat_body, image_messages
from saccade_testing.api.fakes import FakeEngine

CHAT = "/v1/chat/completions"
COMPLETE = "/v1/completions"


def key(name: str = "a", **limits: int) -> Key:
    ceiling = limits.pop("priority_ceiling", 0)
    return Key(name, digest_of(name), priority_ceiling=ceiling, limits=Limits(**limits))


def as_(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the windows, at the beginning of a minute."""
    now = [60.0 * 10**6]
    monkeypatch.setattr("limits.storage.memory.time", SimpleNamespace(time=lambda: now[0]))
    return now


def test_a_minute_has_so_many_and_slides(clock: list[float]) -> None:
    rates, alice = Rates(), key(requests_per_minute=6)
    for _ in range(6):
        rates.take(alice, requests=1)
    with pytest.raises(RateLimited) as refusal:
        rates.take(alice, requests=1)
    wait = int(refusal.value.headers["retry-after"])
    assert wait == 60
    clock[0] += wait - 1
    with pytest.raises(RateLimited):
        rates.take(alice, requests=1)
    clock[0] += 1 + 1e-3
    rates.take(alice, requests=1)  # of the minute before, nearly six sixths count
    with pytest.raises(RateLimited) as refusal:
        rates.take(alice, requests=1)
    assert 9 <= int(refusal.value.headers["retry-after"]) <= 11
    clock[0] += int(refusal.value.headers["retry-after"])
    rates.take(alice, requests=1)
    clock[0] += 120
    assert rates.headers(alice)["x-ratelimit-remaining-requests"] == "6"


@pytest.mark.parametrize("used", [1, 50, 99, 100, 250])
@pytest.mark.parametrize("later", [0.0, 20.0, 59.0, 75.0])
def test_who_comes_back_when_told_gets_in_and_not_much_earlier(
    used: int, later: float, clock: list[float]
) -> None:
    rates, alice = Rates(), key(tokens_per_minute=100)
    clock[0] += 13
    rates.add(alice, tokens=used)
    clock[0] += later
    for cost in (1, 30, 100):
        wait = rates._seconds_until(alice, "tokens", cost)
        clock[0] += wait + 1e-3
        rates.check(alice, tokens=cost)
        if wait > 0.1:
            clock[0] -= 0.1
            with pytest.raises(RateLimited):
                rates.check(alice, tokens=cost)
            clock[0] += 0.1
        clock[0] -= wait + 1e-3


def test_answers_count_although_there_is_nothing_left(clock: list[float]) -> None:
    rates, alice = Rates(), key(tokens_per_minute=100)
    rates.take(alice, tokens=90)
    rates.add(alice, tokens=60)
    headers = rates.headers(alice)
    assert headers == {
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "2m0s",
    }
    with pytest.raises(RateLimited):
        rates.take(alice, tokens=1)
    rates.take(key("b", tokens_per_minute=100), tokens=100)
    rates.take(key("c"), tokens=10**9, requests=5)


def test_all_or_nothing(clock: list[float]) -> None:
    rates, alice = Rates(), key(tokens_per_minute=100, images_per_minute=2)
    rates.take(alice, images=1)
    with pytest.raises(RateLimited, match="2 images"):
        rates.take(alice, tokens=10, images=2)
    assert rates.headers(alice)["x-ratelimit-remaining-tokens"] == "100"


def test_what_a_key_never_has_is_not_worth_a_second_try(clock: list[float]) -> None:
    with pytest.raises(BadRequest) as refusal:
        Rates().take(key(tokens_per_minute=100), tokens=101)
    assert refusal.value.code == "exceeds_key_limit"


def test_times_as_others_write_them() -> None:
    assert [worded(s) for s in (0, 0.04, 1, 59.95, 60, 62.5)] == [
        *("0s", "0.1s", "1s", "1m0s", "1m0s", "1m2.5s"),
    ]


def test_requests_of_a_key_are_refused_before_their_body(make_server, clock) -> None:
    server = make_server(keys=(key("a", requests_per_minute=2), key("b")))
    first = server.http.post(CHAT, json=chat_body(), headers=as_("a"))
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert server.http.post("/tokenize", json={"prompt": "x"}, headers=as_("a")).is_success
    refused = server.http.post(CHAT, json=chat_body(), headers=as_("a"))
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limited"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 120
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    other = server.http.post(CHAT, json=chat_body(), headers=as_("b"))
    assert other.status_code == 200
    assert "x-ratelimit-limit-requests" not in other.headers
    assert server.http.get("/v1/models", headers=as_("a")).is_success
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="a", max_retries=0)
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}])


def test_tokens_of_prompts_and_answers_count(make_server, clock) -> None:
    server = make_server(keys=(key("a", tokens_per_minute=600),))

    def left(answer) -> int:
        return int(answer.headers["x-ratelimit-remaining-tokens"])

    body = {"prompt": [65] * 100, "max_tokens": 5}
    first = server.http.post(COMPLETE, json=body, headers=as_("a"))
    second = server.http.post(COMPLETE, json=body | {"n": 2}, headers=as_("a"))
    assert left(first) - left(second) == 100 + 10  # what it was answered is told by then
    score = {"prompt": [65] * 60, "continuations": [[66] * 10, [67]]}
    third = server.http.post("/v1/score", json=score, headers=as_("a"))
    assert left(second) - left(third) == 70 + 61
    body = {"prompt": [65] * 500, "max_tokens": 1}
    refused = server.http.post(COMPLETE, json=body, headers=as_("a"))
    assert refused.status_code == 429
    assert len(server.engine.requests) == 1 + 2 + 2
    assert server.http.post(COMPLETE, json={"prompt": [65]}, headers=as_("a")).status_code == 200
    server.app.state.services.rates.add(key("a", tokens_per_minute=600), tokens=600)
    before = server.http.get("/v1/artifacts", headers=as_("a"))  # there is no body to count
    assert (before.status_code, left(before)) == (429, 0)


def test_images_count_before_they_are_decoded(make_server, clock) -> None:
    server = make_server(keys=(key("a", images_per_minute=16),))
    body = {"messages": image_messages(*[PICTURE] * 10)}
    assert server.http.post(CHAT, json=body, headers=as_("a")).status_code == 200
    bad = "data:image/png;base64,AAAA"
    body = {"messages": image_messages(*[bad] * 10)}
    assert server.http.post(CHAT, json=body, headers=as_("a")).status_code == 429
    assert server.http.post(CHAT, json=chat_body(), headers=as_("a")).status_code == 200


def test_requests_at_once(make_server) -> None:
    server = make_server(
        FakeEngine(stall_after=0), keys=(key("a", concurrent_requests=2), key("b"))
    )
    done: list[int] = []

    def post() -> None:
        done.append(server.http.post(CHAT, json=chat_body(), headers=as_("a")).status_code)

    threads = [threading.Thread(target=post) for _ in range(2)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 20
    while len(server.engine.running) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    refused = server.http.post(CHAT, json=chat_body(), headers=as_("a"))
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    server.engine.stall_after = None
    assert server.http.post(CHAT, json=chat_body(), headers=as_("b")).status_code == 200
    for thread in threads:
        thread.join()
    assert done == [200, 200]
    assert server.http.post(CHAT, json=chat_body(), headers=as_("a")).status_code == 200


def test_no_request_is_more_urgent_than_its_key_allows(make_server) -> None:
    keys = (key("a"), key("b", priority_ceiling=-5), Key("c", digest_of("c"), priority=7))
    server = make_server(keys=keys, api_keys=("plain",))
    sent = [("a", 0), ("a", 9), ("b", -5), ("c", None), ("plain", -99)]
    for name, priority in sent:
        body = chat_body() if priority is None else chat_body(priority=priority)
        assert server.http.post(CHAT, json=body, headers=as_(name)).status_code == 200, name
    told = [(request.owner, request.priority) for request in server.engine.requests]
    assert told == [("a", 0), ("a", 9), ("b", -5), ("c", 7), ("api-key-1", -99)]
    assert all(request.deadline is not None for request in server.engine.requests)
    for name, priority in (("a", -1), ("b", -6)):
        refused = server.http.post(CHAT, json=chat_body(priority=priority), headers=as_(name))
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "priority_not_allowed"
        assert refused.json()["error"]["param"] == "priority"


def test_no_key_takes_all_places(make_server) -> None:
    server = make_server(FakeEngine(stall_after=0), max_requests=10, keys=(key("a"), key("b")))
    codes: list[int] = []

    def post() -> None:
        codes.append(server.http.post(CHAT, json=chat_body(), headers=as_("a")).status_code)

    threads = [threading.Thread(target=post) for _ in range(10)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 20
    while len(server.engine.running) + len(codes) < 10 and time.monotonic() < until:
        time.sleep(0.01)
    assert codes == [503] * 2
    server.engine.stall_after = 1
    body = {"prompt": "x", "max_tokens": 1}
    assert server.http.post(COMPLETE, json=body, headers=as_("b")).status_code == 200
    assert codes == [503] * 2
    server.engine.stall_after = None
    for thread in threads:
        thread.join()
    assert sorted(codes) == [200] * 8 + [503] * 2
    for _ in range(4 * 10):  # a place that was had is free again
        assert server.http.post(COMPLETE, json=body, headers=as_("a")).status_code == 200


def test_the_file_is_read_again(make_server, clock, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    server = make_server(keys=(key("a", requests_per_minute=1),))
    services = server.app.state.services
    assert server.http.post(CHAT, json=chat_body(), headers=as_("a")).status_code == 200
    assert server.http.post(CHAT, json=chat_body(), headers=as_("a")).status_code == 429
    path.write_text(
        "[keys.a]\nkey = 'a'\nrequests_per_minute = 100\n[keys.new]\nkey = 'n'\nadmin = true"
    )
    assert keys_file(path, services).read()() == f"2 keys of {path}"
    assert server.http.post(CHAT, json=chat_body(), headers=as_("a")).status_code == 200
    assert server.http.post(CHAT, json=chat_body(), headers=as_("n")).status_code == 200
    admins = "[keys.a]\nkey = 'a'\nadmin = true"
    for wrong in ("", "[keys.a]\nkey = 'a'\ntokens_per_minute = 3", "[keys.a]", admins):
        path.write_text(wrong)
        with pytest.raises(KeyFileError):
            keys_file(path, services).read()
    assert server.http.post(CHAT, json=chat_body(), headers=as_("n")).status_code == 200
