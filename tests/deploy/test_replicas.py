"""Replicas in Kubernetes: proxies find them, and as many run as the server's metrics ask for."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from saccade_server.api.metrics import names
from saccade_server.cli import app
from saccade_testing.manifests import FOLDER, OVERLAYS, Manifests, built

RULES: list[dict[str, Any]] = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text())[
    "rules"
]["custom"]
OFFERED = [one.full_name for one in vars(names).values() if isinstance(one, names.Metric)]
"""Metrics of the server, by their names in /metrics."""

HAPROXY = shutil.which("haproxy")
SERVE: Any = typer.main.get_command(app).commands["serve"]


@pytest.fixture(params=[name for name in OVERLAYS if name.endswith("replicas")])
def manifests(request: pytest.FixtureRequest) -> Manifests:
    return built(request.param)


@pytest.fixture
def proxy(manifests: Manifests, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """The proxies' configuration, and what their environment is in the namespace."""
    mounted = manifests.one("ConfigMap", "saccade-haproxy")["data"]
    for name, text in mounted.items():
        (tmp_path / name).write_text(text)
    told = {
        name: value.replace("$(NAMESPACE)", "saccade")
        for name, value in manifests.environment("saccade-proxy").items()
    }
    assert not any("$(" in value for value in told.values())
    return tmp_path / "haproxy.cfg", told


def asked(manifests: Manifests) -> dict[str, float]:
    """The metrics that the autoscaler asks for, and its target for each replica."""
    scaler = manifests.kinds("HorizontalPodAutoscaler")["saccade"]["spec"]
    pods = [metric["pods"] for metric in scaler["metrics"]]
    assert all(pod["target"]["type"] == "AverageValue" for pod in pods)
    return {pod["metric"]["name"]: float(pod["target"]["averageValue"]) for pod in pods}


def test_the_autoscaler_asks_for_what_the_adapter_makes_of_our_metrics(
    manifests: Manifests,
) -> None:
    made = set()
    for rule in RULES:
        (pattern,) = re.findall(r'__name__=~"(.+?)"', rule["seriesQuery"])
        for name in OFFERED:
            # Go writes a group as ${1}, Python as \1
            if re.fullmatch(pattern, name) and re.search(rule["name"]["matches"], name):
                template = rule["name"]["as"].replace("${1}", r"\1")
                made.add(re.sub(rule["name"]["matches"], template, name))
    assert asked(manifests).keys() == made
    assert not any(":" in name for name in made)


def test_the_targets_are_below_what_a_replica_takes(manifests: Manifests) -> None:
    default = next(one.default for one in SERVE.params if one.name == "max_num_seqs")
    told = manifests.environment("saccade").get("SACCADE_MAX_NUM_SEQS", default)
    assert asked(manifests)["saccade_num_requests_running"] == 0.75 * int(told)


def test_the_autoscaler_alone_says_how_many(manifests: Manifests) -> None:
    scaler = manifests.kinds("HorizontalPodAutoscaler")["saccade"]["spec"]
    target = scaler["scaleTargetRef"]
    assert target["name"] in manifests.kinds(target["kind"])
    assert "replicas" not in manifests.deployment("saccade")["spec"]
    assert scaler["minReplicas"] >= 2
    slots = int(manifests.environment("saccade-proxy")["REPLICAS_SLOTS"])
    # a pod that ends and the one that follows it have an address each
    assert slots > scaler["maxReplicas"]


def test_proxies_look_where_replicas_are(
    manifests: Manifests, proxy: tuple[Path, dict[str, str]]
) -> None:
    _, told = proxy
    name, space, *domain = told["REPLICAS_HOST"].split(".")
    service = manifests.kinds("Service")[name]
    assert service["metadata"]["namespace"] == space
    assert domain == ["svc", "cluster", "local"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    (port,) = manifests.container("saccade")["ports"]
    assert told.get("REPLICAS_PORT", "8000") == str(port["containerPort"])


def test_proxies_listen_where_the_service_and_probes_say(
    manifests: Manifests, proxy: tuple[Path, dict[str, str]]
) -> None:
    file, told = proxy
    text = file.read_text()
    container = manifests.container("saccade-proxy")
    ports = {port["name"]: f":{port['containerPort']}" for port in container["ports"]}
    assert f"presetenv PROXY_BIND {ports['http']}" in text
    assert "PROXY_BIND" not in told
    assert told["METRICS_BIND"] == ports["metrics"]
    path = container["readinessProbe"]["httpGet"]["path"]
    assert f"monitor-uri {path}\n" in text
    service = manifests.kinds("Service")["saccade"]["spec"]
    labels = manifests.deployment("saccade-proxy")["spec"]["template"]["metadata"]["labels"]
    assert service["selector"] == labels
    assert [port["targetPort"] for port in service["ports"]] == ["http"]
    for name, file_name in re.findall(r"presetenv (\w+_LUA) (\S+)", text):
        mount = container["volumeMounts"][0]["mountPath"]
        assert Path(told.get(name, file_name)).parent == Path(mount)


def test_proxies_end_after_what_they_have_passed_on(
    manifests: Manifests, proxy: tuple[Path, dict[str, str]]
) -> None:
    file, _ = proxy
    (longest,) = re.findall(r"^ +timeout server (\d+)s$", file.read_text(), re.MULTILINE)
    pod, container = manifests.pod("saccade-proxy"), manifests.container("saccade-proxy")
    _, pause = container["lifecycle"]["preStop"]["exec"]["command"]
    assert pod["terminationGracePeriodSeconds"] > int(longest) + int(pause)


@pytest.mark.skipif(HAPROXY is None, reason="no haproxy here")
def test_haproxy_takes_its_configuration(proxy: tuple[Path, dict[str, str]]) -> None:
    file, told = proxy
    lua = {"AFFINITY_LUA": str(file.parent / "affinity.lua")}
    done = subprocess.run(
        [str(HAPROXY), "-c", "-f", str(file)],
        env=told | lua,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # nothing that it would say at every start of a pod
    assert "WARNING" not in done.stderr, done.stderr


def test_replicas_share_what_they_keep(manifests: Manifests) -> None:
    claim = manifests.kinds("PersistentVolumeClaim")["saccade-cache"]["spec"]
    assert claim["accessModes"] == ["ReadWriteMany"]
    strategy = manifests.deployment("saccade")["spec"]["strategy"]
    assert strategy["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_nodes_are_emptied_one_pod_at_a_time(manifests: Manifests) -> None:
    budgets = manifests.kinds("PodDisruptionBudget")
    assert budgets.keys() == {"saccade", "saccade-proxy"}
    for name, budget in budgets.items():
        assert budget["spec"]["maxUnavailable"] == 1
        labels = manifests.deployment(name)["spec"]["template"]["metadata"]["labels"]
        assert budget["spec"]["selector"]["matchLabels"] == labels
