"""Dashboard and alerts ask for what a server really says: every query, against its /metrics."""

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import promql_parser
import pytest
import yaml

from saccade_testing.api.bodies import MODEL, data_url, encode, image_messages
from saccade_testing.api.scraped import Counting, scrape
from saccade_testing.api.server import Server, start_server, wait_for

DEPLOY = Path(__file__).parents[3] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "saccade.json").read_text())
RULES = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
ADDED = {"instance", "job", "model_name"}
"""Labels that Prometheus adds, and the one that our own scrapes leave out."""
KEY = "sesame"

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing")


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def filled_in(query: str) -> str:
    """A query as Grafana would send it."""
    values = {"$__rate_interval": "1m", "$model": ".*", "$instance": ".*"}
    for name, value in values.items():
        query = query.replace(name, value)
    return query


def queries() -> list[tuple[str, str, str]]:
    """Title, query, legend of every target."""
    return [
        (panel["title"], filled_in(target["expr"]), target["legendFormat"])
        for panel in panels()
        for target in panel["targets"]
    ]


class Asked:
    """What a query takes: of each name its matchers, and all labels that it groups by."""

    def __init__(self, query: str) -> None:
        self.selectors: list[tuple[str, dict[str, tuple[str, str]]]] = []
        self.grouped: set[str] = set()
        self._walk(promql_parser.parse(query))

    def _walk(self, node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            matchers = {m.name: (str(m.op), m.value) for m in node.matchers.matchers}
            self.selectors.append((node.name, matchers))
        modifier = getattr(node, "modifier", None)
        if modifier is not None and hasattr(modifier, "labels"):
            self.grouped |= set(modifier.labels)
        for name in ("expr", "vector_selector", "lhs", "rhs"):
            if getattr(node, name, None) is not None:
                self._walk(getattr(node, name))
        for child in getattr(node, "args", None) or ():
            self._walk(child)


@pytest.fixture(scope="module")
def served() -> Iterator[Server]:
    """A server to which everything that is counted has happened."""
    server = start_server(
        Counting(),
        api_keys=(KEY,),
        access_log=False,
        profiles={"look": {"interventions": [{"method": "var"}]}},
    )
    happen(server)
    yield server
    server.stop()


def happen(server: Server) -> None:
    server.http.headers["authorization"] = f"Bearer {KEY}"
    seen = {"messages": image_messages(data_url(encode(picture())))}
    assert server.chat(model=f"{MODEL}+look", **seen).status_code == 200
    sgrs = {"method": "sgrs", "layers": [1, 2]}
    assert server.chat(interventions=[sgrs], stream=True, n=2).status_code == 200
    assert server.chat(interventions=[{"method": "no"}]).status_code == 400
    server.engine.capacity = False
    assert server.chat().status_code == 503
    server.engine.capacity, server.engine.stall_after = True, 1
    with pytest.raises(httpx2.ReadTimeout):
        server.http.post("/v1/completions", json={"model": MODEL, "prompt": "a"}, timeout=0.1)
    server.engine.stall_after = None
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"no HTTP\r\n\r\n")
        client.recv(4096)
    wait_for(lambda: bool(scrape(server).by("http_disconnects_total", "route")))


def picture() -> Any:
    from PIL import Image

    return Image.new("RGB", (8, 8))


@pytest.fixture(scope="module")
def said(served: Server) -> dict[str, list[dict[str, str]]]:
    """The labels of all samples, by name."""
    found: dict[str, list[dict[str, str]]] = {}
    for name, labels in scrape(served, accept="application/openmetrics-text"):
        found.setdefault(name, []).append(dict(labels))
    return found


def check(query: str, said: dict[str, list[dict[str, str]]]) -> Asked:
    asked = Asked(query)
    assert asked.selectors, query
    known: set[str] = set(ADDED)
    for name, matchers in asked.selectors:
        if name == "up":
            continue
        assert name in said, f"{name} is not exposed: {query}"
        labels = set(said[name][0])
        known |= labels
        assert matchers.keys() <= labels | ADDED, query
        own = {label: told for label, told in matchers.items() if label not in ADDED}
        for label, (op, value) in own.items():
            pattern = value if "~" in op or "Re" in op else re.escape(value)
            values = {sample[label] for sample in said[name]}
            assert any(re.fullmatch(pattern, value) for value in values), (query, values)
    assert asked.grouped <= known, query
    return asked


@pytest.mark.parametrize(("title", "query", "legend"), queries())
def test_a_panel_finds_what_it_asks_for(
    title: str, query: str, legend: str, said: dict[str, list[dict[str, str]]]
) -> None:
    asked = check(query, said)
    shown = set(re.findall(r"\{\{ *(\w+) *\}\}", legend))
    assert shown <= asked.grouped, title


def test_panels_show_every_metric_of_interventions(said: dict[str, Any]) -> None:
    used = {name for _, query, _ in queries() for name, _ in Asked(query).selectors}
    counted = {name for name in said if name.startswith("saccade:intervention")}
    assert counted - {name for name in said if name.endswith("_created")} <= used


def test_panels_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_an_alert_finds_what_it_asks_for(
    rule: dict[str, Any], said: dict[str, list[dict[str, str]]]
) -> None:
    asked = Asked(rule["expr"])
    for name, matchers in asked.selectors:
        own = {label for label in matchers if label not in ADDED}
        assert name == "up" or name in said
        assert not own or own <= set(said[name][0])
    assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    assert rule["labels"]["severity"] in ("critical", "warning")


def test_alerts_know_the_codes_of_errors() -> None:
    from saccade_server.api.errors import ApiError, EngineFailure

    (rule,) = [rule for rule in RULES if rule["alert"] == "SaccadeServerErrors"]
    ((_, matchers),) = Asked(rule["expr"]).selectors
    assert set(matchers["code"][1].split("|")) == {ApiError.code, EngineFailure.code}


@needs_promtool
def test_alerts_ring_when_they_should(tmp_path: Path) -> None:
    for file in (DEPLOY / "prometheus").iterdir():
        shutil.copy(file, tmp_path)
    (tmp_path / "saccade.key").write_text(KEY)
    for arguments in (["check", "config", "prometheus.yml"], ["test", "rules", "alerts.test.yml"]):
        ran = subprocess.run(
            ["promtool", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
    tested = yaml.safe_load((tmp_path / "alerts.test.yml").read_text())["tests"]
    names = {case["alertname"] for each in tested for case in each["alert_rule_test"]}
    assert names == {rule["alert"] for rule in RULES}


@pytest.mark.long
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is missing")
def test_prometheus_answers_every_query(served: Server, tmp_path: Path) -> None:
    """The files of deploy/prometheus as they are, but for the address and how often."""
    folder = DEPLOY / "prometheus"
    config = (folder / "prometheus.yml").read_text()
    config = config.replace("127.0.0.1:8000", f"127.0.0.1:{served.port}").replace("10s", "1s")
    (tmp_path / "prometheus.yml").write_text(config)
    (tmp_path / "saccade.key").write_text(KEY)
    shutil.copy(folder / "alerts.yml", tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address={address}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with httpx2.Client(base_url=f"http://{address}", trust_env=False) as client:
            wait_for(lambda: ready(client), 30)
            wait_for(lambda: len(asked(client, "saccade:engine_alive[1h]")) > 0, 30)
            for _ in range(4):
                happen(served)
                time.sleep(1.5)
            empty = [(title, query) for title, query, _ in queries() if not asked(client, query)]
            assert not empty
            labels = {"job", "instance", "model_name"}
            (alive,) = asked(client, "saccade:engine_alive")
            assert labels <= alive["metric"].keys()
            rules = client.get("/api/v1/rules").json()["data"]["groups"][0]["rules"]
            assert [rule["health"] for rule in rules] == ["ok"] * len(RULES)
    finally:
        process.terminate()
        process.wait(10)


def ready(client: httpx2.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx2.TransportError:
        return False


def asked(client: httpx2.Client, query: str) -> list[dict[str, Any]]:
    answer = client.get("/api/v1/query", params={"query": query}).json()
    assert answer["status"] == "success", (query, answer)
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found
