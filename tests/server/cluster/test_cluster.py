"""``saccade cluster`` on a real Ray: what clients get, and what happens when parts of it die."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from saccade_client import Saccade
from saccade_client.affinity import HEADER, affinity_key
from saccade_interventions.artifacts import write_artifact
from saccade_server.cluster.names import REPLICA
from saccade_server.demo import sample_path
from saccade_testing.api.bodies import data_url, image_messages, parse_events
from saccade_testing.launch import Clustered, Served, descendants, gone, wait_for

pytest.importorskip("ray.serve", reason="needs the extra ray")

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]

MODEL = "saccade-demo"
KEY = {"Authorization": "Bearer secret-key"}
CHAT = "/v1/chat/completions"
PROFILES = '[profiles.grounded]\ninterventions = [{ method = "var" }]\n'
KEYS = '[keys.first]\nkey = "first-key"\n'
ENDLESS = {"model": MODEL, "max_tokens": 1500, "ignore_eos": True}


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("shared")
    profiles = folder / "profiles.toml"
    profiles.write_text(PROFILES)
    keys = folder / "keys.toml"
    keys.write_text(KEYS)
    return [
        "--no-self-test", "--api-key", "secret-key", "--admin-key", "admin-key",
        "--keys", str(keys), "--profiles", str(profiles), "--artifacts", str(folder / "artifacts"),
        "--traces", str(folder / "traces"), "--silence-timeout", "2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, options: list[str]) -> Iterator[Clustered]:
    log = tmp_path_factory.mktemp("cluster") / "log"
    served = Clustered(log, "--replicas", "2", "--replica-cpus", "0.5", *options)
    try:
        wait_for(lambda: "Serving" in served.output.read_text() or _ended(served), 250)
        wait_until_whole(served)
        yield served
    finally:
        served.end()


@pytest.fixture(scope="module")
def lone(
    tmp_path_factory: pytest.TempPathFactory, cluster: Clustered, options: list[str]
) -> Iterator[Served]:
    """One server with the same options, to compare with."""
    served = Served(tmp_path_factory.mktemp("lone") / "log", *options)
    try:
        served.wait_until_ready()
        yield served
    finally:
        served.end()


def _ended(served: Served) -> bool:
    assert served.process.poll() is None, served.log.read_text()[-4000:]
    return False


def client(served: Served) -> httpx2.Client:
    return httpx2.Client(base_url=served.url, headers=KEY, timeout=60)


def wait_until_whole(served: Clustered) -> set[str]:
    """Until two replicas answer; their names."""
    with client(served) as http:

        def whole() -> bool:
            names.clear()
            for number in range(12):
                answer = http.post(CHAT, json=short(f"{number}"))
                if answer.status_code == 200:
                    names.add(answer.headers[REPLICA])
            return len(names) == 2 and len(served.replicas()) == 2

        names: set[str] = set()
        wait_for(whole, 120)
    return names


def short(text: str) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 3,
        "temperature": 0,
    }


def seen(**fields: Any) -> dict[str, Any]:
    picture = data_url(sample_path("clear-1").read_bytes())
    return short("") | {"messages": image_messages(picture)} | fields


VARYING = ("id", "created", "date", "server", REPLICA, "x-request-id", "content-length")


def without_varying(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_varying(v) for k, v in value.items() if k not in VARYING}
    if isinstance(value, float):  # other threads, and other chunks of prompts, sum in another order
        return round(value, 4)
    return [without_varying(each) for each in value] if isinstance(value, list) else value


def requests() -> list[tuple[str, str, dict[str, Any]]]:
    vcd = [{"method": "vcd"}]
    image = seen(max_tokens=12)
    return [
        ("POST", CHAT, {"json": image}),
        ("POST", CHAT, {"json": image | {"interventions": vcd, "logprobs": True}}),
        ("POST", CHAT, {"json": image | {"model": f"{MODEL}+grounded", "n": 2, "seed": 3}}),
        ("POST", CHAT, {"json": image | {"interventions": [{"method": "vdc"}]}}),
        ("POST", CHAT, {"json": image | {"model": "other"}}),
        ("POST", CHAT, {"content": b"{", "headers": {"content-type": "application/json"}}),
        ("POST", CHAT, {"content": b"{}", "headers": {"content-type": "text/plain"}}),
        ("POST", CHAT, {"json": image, "headers": {"Authorization": "Bearer wrong"}}),
        ("POST", "/v1/completions", {"json": {"prompt": "A red", "temperature": 0}}),
        ("POST", "/v1/score", {"json": {"prompt": "A red", "continuations": [" square"]}}),
        ("GET", "/v1/models", {}),
        ("GET", "/v1/interventions", {}),
        ("GET", "/v1/profiles", {}),
        ("GET", "/v1/deployment", {}),
        ("GET", "/nowhere", {}),
        ("DELETE", CHAT, {}),
        ("GET", "/ready", {}),
        ("GET", "/openapi.json", {}),
        ("GET", "/", {}),
    ]  # fmt: skip


def test_answers_are_those_of_one_server(cluster: Clustered, lone: Served) -> None:
    with client(cluster) as many, client(lone) as one:
        for method, path, request in requests():
            found, expected = (http.request(method, path, **request) for http in (many, one))
            assert found.status_code == expected.status_code, (path, found.text)
            assert len(found.headers.get_list("x-request-id")) == 1
            same = {name: found.headers.get(name) for name in expected.headers}
            assert without_varying(same) == without_varying(dict(expected.headers)), path
            if "json" in expected.headers.get("content-type", ""):
                assert without_varying(found.json()) == without_varying(expected.json()), path
            else:
                assert found.text == expected.text


def test_streams_are_those_of_one_server(cluster: Clustered, lone: Served) -> None:
    body = requests()[1][2]["json"] | {"stream": True, "stream_options": {"include_usage": True}}
    texts = []
    for served in (cluster, lone):
        with client(served) as http, http.stream("POST", CHAT, json=body) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            texts.append(without_varying(parse_events(answer.read().decode())))
    assert texts[0] == texts[1]
    assert texts[0][-1] == "[DONE]"


def test_tokens_come_while_others_are_computed(cluster: Clustered) -> None:
    body = ENDLESS | {"messages": [{"role": "user", "content": "Go on"}], "stream": True}
    with client(cluster) as http, http.stream("POST", CHAT, json=body) as answer:
        moments = [time.monotonic() for _ in answer.iter_lines()]
    assert moments[len(moments) // 2] - moments[0] > 0.2 * (moments[-1] - moments[0])


def test_turns_of_a_conversation_go_to_one_replica_and_find_their_prefix(
    cluster: Clustered,
) -> None:
    with client(cluster) as http:
        for number in range(4):
            messages: list[dict[str, Any]] = [
                {"role": "user", "content": f"Conversation {number} " + "about shapes " * 20}
            ]
            names = set()
            for turn in range(3):
                body = short("") | {"messages": messages}
                # With the key that our client sends, and without one.
                keyed = {HEADER: str(affinity_key(body))} if turn % 2 else {}
                response = http.post(CHAT, json=body, headers=keyed)
                names.add(response.headers[REPLICA])
                answer = response.json()
                if turn:
                    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
                text = answer["choices"][0]["message"]["content"]
                messages += [
                    {"role": "assistant", "content": text},
                    {"role": "user", "content": "And then?"},
                ]
            assert len(names) == 1


def on_both(http: httpx2.Client, path: str) -> list[httpx2.Response]:
    """What each replica answers to a request without a key."""
    answers: dict[str, httpx2.Response] = {}
    for _ in range(60):
        answer = http.get(path)
        answers[answer.headers[REPLICA]] = answer
    assert len(answers) == 2
    return list(answers.values())


def test_what_one_replica_keeps_is_found_on_both(cluster: Clustered) -> None:
    with client(cluster) as http, Saccade(cluster.url, admin_key="admin-key") as admin:
        fingerprint = http.get("/v1/models").json()["data"][0]["fingerprint"]
        heads = write_artifact("heads", fingerprint, {"heads": np.array([[2, 0], [3, 1]])})
        act = admin.put_artifact(heads).id
        assert {answer.content for answer in on_both(http, f"/v1/artifacts/{act}")} == {heads}
        body = seen(trace={"masses": True, "delivery": "link"})
        traced = http.post(CHAT, json=body).json()["choices"][0]["trace"]
        assert len({answer.content for answer in on_both(http, traced["link"])}) == 1
        assert len({a.json()["deployment"] for a in on_both(http, "/v1/deployment")}) == 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_engine(cluster: Clustered, stream: bool) -> None:
    body = ENDLESS | {"messages": [{"role": "user", "content": "Leave"}], "stream": stream}
    with client(cluster) as http:

        def running() -> list[int]:
            loads = {}
            while len(loads) < 2:
                answer = http.get("/load")
                loads[answer.headers[REPLICA]] = answer.json()["running"]
            return sorted(loads.values())

        with client(cluster) as leaving, ThreadPoolExecutor(1) as pool:
            pool.submit(_ask_and_leave, leaving, body)
            wait_for(lambda: running() == [0, 1], 10)
        left = time.monotonic()
        wait_for(lambda: running() == [0, 0], 10)
        assert time.monotonic() - left < 2


def _ask_and_leave(http: httpx2.Client, body: dict[str, Any]) -> None:
    with pytest.raises(httpx2.ReadTimeout):
        http.post(CHAT, json=body, timeout=httpx2.Timeout(60, read=1.0))


def ask_endlessly(served: Served, text: str) -> httpx2.Response:
    """An answer that takes seconds, from wherever it is computed."""
    with client(served) as http:
        body = ENDLESS | {"messages": [{"role": "user", "content": text}], "stream": True}
        return http.post(CHAT, json=body)


def in_flight(served: Served, count: int, kill: int, number: signal.Signals) -> list[Any]:
    """Codes of the errors that ``count`` streams end with, or None, when a process is killed."""
    with ThreadPoolExecutor(count) as pool:
        asked = [pool.submit(ask_endlessly, served, f"In flight {n}") for n in range(count)]
        time.sleep(1.0)
        os.kill(kill, number)
        answers = [each.result(60) for each in asked]
    codes = []
    for answer in answers:
        *_, last, done = parse_events(answer.text)
        assert done == "[DONE]"
        codes.append(last["error"]["code"] if "error" in last else None)
    return codes


@pytest.mark.parametrize(
    ("what", "code"), [("engines", "engine_dead"), ("replicas", "replica_lost")]
)
def test_what_dies_ends_its_requests_and_is_replaced(
    cluster: Clustered, what: str, code: str
) -> None:
    before = wait_until_whole(cluster)
    codes = in_flight(cluster, 8, getattr(cluster, what)()[0], signal.SIGKILL)
    assert set(codes) == {None, code}, codes
    with client(cluster) as http:
        for number in range(10):  # nobody is sent to what is dead
            assert http.post(CHAT, json=short(f"{number}")).status_code == 200
    after = wait_until_whole(cluster)
    assert len(before & after) == 1


def test_an_engine_that_hangs_is_passed_over_and_replaced(cluster: Clustered) -> None:
    before = wait_until_whole(cluster)
    (engine, *_) = cluster.engines()
    os.kill(engine, signal.SIGSTOP)
    wait_for(lambda: gone(engine), 90)
    assert len(before & wait_until_whole(cluster)) == 1


def scraped(served: Served, **headers: str) -> dict[str, dict[str, float]]:
    """Values of /metrics by name, then by replica."""
    answer = httpx2.get(f"{served.url}/metrics", headers={**KEY, **headers}, timeout=60)
    assert answer.status_code == 200
    found: dict[str, dict[str, float]] = {}
    for family in (open_metrics if headers else prometheus)(answer.text):
        for sample in family.samples:
            labels = sample.labels
            by = found.setdefault(sample.name, {})
            place = labels.get("replica") or labels["state"]
            by[place] = by.get(place, 0) + sample.value
    return found


@pytest.mark.parametrize("accept", [{}, {"accept": "application/openmetrics-text"}])
def test_metrics_are_those_of_all_replicas(cluster: Clustered, accept: dict[str, str]) -> None:
    names = wait_until_whole(cluster)
    before = scraped(cluster, **accept)
    with client(cluster) as http:
        for number in range(8):
            assert http.post(CHAT, json=short(f"Counted {number}")).status_code == 200
    after = scraped(cluster, **accept)
    assert after["saccade:replicas"] == {"answered": 2, "silent": 0}
    for name in ("engine_alive", "engine_answered", "deployment_info"):
        assert after[f"saccade:{name}"] == dict.fromkeys(names, 1)
    name = "saccade:request_success_total"
    counted = {each: after[name][each] - before[name][each] for each in names}
    assert sum(counted.values()) == 8
    assert min(counted.values()) > 0
    assert httpx2.get(f"{cluster.url}/metrics", timeout=60).status_code == 401


def test_told_so_all_replicas_read_files_again_or_none(
    cluster: Clustered, options: list[str]
) -> None:
    profiles, keys = (Path(options[options.index(o) + 1]) for o in ("--profiles", "--keys"))
    names = wait_until_whole(cluster)

    def told(content: str, words: str) -> None:
        profiles.write_text(content)
        said = cluster.log.read_text().count(words)
        os.kill(cluster.pid, signal.SIGHUP)
        wait_for(lambda: cluster.log.read_text().count(words) > said, 60)

    def keys_known() -> dict[str, set[int]]:
        found: dict[str, set[int]] = {}
        for key in ("first-key", "second-key"):
            head = {"Authorization": f"Bearer {key}"}
            with httpx2.Client(base_url=cluster.url, headers=head, timeout=60) as http:
                answers = [http.get("/v1/models") for _ in range(20)]
            assert {answer.headers[REPLICA] for answer in answers} == names
            found[key] = {answer.status_code for answer in answers}
        return found

    def known() -> list[set[str]]:
        with client(cluster) as http:
            answers = on_both(http, "/v1/profiles")
        assert {answer.headers[REPLICA] for answer in answers} == names
        return [{each["id"] for each in answer.json()["data"]} for answer in answers]

    assert known() == [{"grounded"}] * 2
    told("[profiles.grounded]\n", "nothing was reloaded")
    assert known() == [{"grounded"}] * 2
    keys.write_text(KEYS.replace("first", "second"))
    more = PROFILES + PROFILES.replace("grounded", "more").replace("var", "pai")
    told(more, "reloaded on 2 replicas: 2 profiles")
    assert known() == [{"grounded", "more"}] * 2
    os.kill(cluster.replicas()[0], signal.SIGKILL)  # the new one is like them
    names = wait_until_whole(cluster)
    assert known() == [{"grounded", "more"}] * 2
    assert keys_known() == {"first-key": {401}, "second-key": {200}}
    told(PROFILES, "reloaded on 2 replicas: 1 profiles")
    assert known() == [{"grounded"}] * 2


def test_a_replica_unlike_the_others_does_not_start(cluster: Clustered, options: list[str]) -> None:
    profiles = Path(options[options.index("--profiles") + 1])
    wait_until_whole(cluster)
    profiles.write_text(PROFILES.replace("var", "pai"))
    try:
        os.kill(cluster.replicas()[0], signal.SIGKILL)
        wait_for(lambda: "unlike replica" in cluster.log.read_text(), 120)
        with client(cluster) as http:
            answers = [http.post(CHAT, json=short(f"{n}")) for n in range(10)]
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.headers[REPLICA] for answer in answers}) == 1
    finally:
        profiles.write_text(PROFILES)
    wait_until_whole(cluster)


def test_told_to_stop_it_finishes_what_it_has_and_leaves_nothing(cluster: Clustered) -> None:
    wait_until_whole(cluster)
    started = descendants(cluster.pid)
    assert in_flight(cluster, 4, cluster.pid, signal.SIGTERM) == [None] * 4
    assert cluster.process.wait(90) == 0
    wait_for(lambda: all(gone(pid) for pid in started), 30)
