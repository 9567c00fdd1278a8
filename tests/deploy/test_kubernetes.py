"""Manifests are objects of Kubernetes, fit each other, and tell the server what it understands."""

import re
import shutil
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml

from saccade_server.cli import app
from saccade_testing.docs import pages
from saccade_testing.manifests import FOLDER, OVERLAYS, Manifests, Object, built, kustomized

DOCKERFILE = (FOLDER.parents[1] / "Dockerfile").read_text()
OLDEST = "1.29"
"""The first Kubernetes that manifests are said to be for."""

CUSTOM = {"PodMonitor"}
"""Kinds of the Prometheus Operator, which have no schema in Kubernetes."""

SERVE: Any = typer.main.get_command(app).commands["serve"]


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def manifests(overlay: str) -> Manifests:
    return built(overlay)


def check(found: Object) -> None:
    for version in (OLDEST, kubernetes_validate.latest_version()):
        kubernetes_validate.validate(found, version, strict=True)


def written() -> list[tuple[Path, Object]]:
    """Objects as they are in files, without what only changes another or makes them up."""
    files = [path for path in sorted(FOLDER.rglob("*.yaml")) if "kustomization" not in path.name]
    listed = {
        path.parent / name
        for path in FOLDER.rglob("kustomization.yaml")
        for name in yaml.safe_load(path.read_text()).get("resources", ())
    }
    return [
        (path, found)
        for path in files
        if path in listed
        for found in yaml.safe_load_all(path.read_text())
    ]


@pytest.mark.parametrize(
    "found", [pytest.param(found, id=f"{path.stem}-{found['kind']}") for path, found in written()]
)
def test_objects_are_what_kubernetes_takes(found: Object) -> None:
    if found["kind"] not in CUSTOM:
        check(found)


def test_overlays_are_what_kubernetes_takes(manifests: Manifests) -> None:
    assert manifests.objects
    for found in manifests.objects:
        check(found)
        assert found["kind"] == "Namespace" or found["metadata"]["namespace"] == "saccade"


def test_a_wrong_field_is_seen(manifests: Manifests) -> None:
    wrong = {**manifests.deployment("saccade"), "spec": {"replica": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        check(wrong)


def test_what_is_referred_to_is_there(manifests: Manifests) -> None:
    for name in manifests.kinds("Deployment"):
        pod, container = manifests.pod(name), manifests.container(name)
        for volume in pod["volumes"]:
            if "configMap" in volume:
                assert volume["configMap"]["name"] in manifests.kinds("ConfigMap")
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                assert claim in manifests.kinds("PersistentVolumeClaim")
        for source in container.get("envFrom", ()):
            if "configMapRef" in source:
                assert source["configMapRef"]["name"] in manifests.kinds("ConfigMap")
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_each_selector_finds_pods_of_one_deployment(manifests: Manifests) -> None:
    labels = {
        name: found["spec"]["template"]["metadata"]["labels"]
        for name, found in manifests.kinds("Deployment").items()
    }
    selectors = [found["spec"]["selector"] for found in manifests.kinds("Service").values()]
    for kind in ("Deployment", "PodDisruptionBudget"):
        found = manifests.kinds(kind).values()
        selectors += [one["spec"]["selector"]["matchLabels"] for one in found]
    for policy in manifests.kinds("NetworkPolicy").values():
        selectors.append(policy["spec"]["podSelector"]["matchLabels"])
    for name in labels:
        for spread in manifests.pod(name).get("topologySpreadConstraints", ()):
            assert spread["labelSelector"]["matchLabels"] == labels[name]
    assert len(selectors) >= 3
    for selector in selectors:
        matched = [name for name in labels if selector.items() <= labels[name].items()]
        assert len(matched) == 1, selector


def test_pods_are_restricted(manifests: Manifests) -> None:
    (space,) = manifests.kinds("Namespace").values()
    assert space["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name in manifests.kinds("Deployment"):
        pod, container = manifests.pod(name), manifests.container(name)
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        assert "privileged" not in container["securityContext"]


def test_images_name_no_registry(manifests: Manifests, overlay: str) -> None:
    for name in manifests.kinds("Deployment"):
        assert re.fullmatch(r"[a-z]+:[a-z0-9.]+", manifests.container(name)["image"])
    assert manifests.container("saccade")["image"] == f"saccade:{overlay.split('-')[0]}"


def test_a_service_called_like_the_server_is_no_option_of_it(manifests: Manifests) -> None:
    """Kubernetes would make SACCADE_PORT=tcp://... of the Service saccade."""
    assert "saccade" in manifests.kinds("Service")
    assert manifests.pod("saccade")["enableServiceLinks"] is False


def test_the_server_understands_what_it_is_told(
    manifests: Manifests, overlay: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = manifests.environment("saccade")
    offered = {parameter.envvar for parameter in SERVE.params}
    assert told.keys() <= offered
    mount = Path(told["SACCADE_PROFILES"])
    profiles = manifests.one("ConfigMap", "saccade-profiles")["data"]
    assert (tmp_path / mount.name).write_text(profiles[mount.name])
    for name, value in (told | {"SACCADE_PROFILES": str(tmp_path / mount.name)}).items():
        monkeypatch.setenv(name, value)
    command, *arguments = manifests.container("saccade")["args"]
    assert command == "serve"
    read = SERVE.make_context(command, list(arguments)).params
    cuda = overlay.startswith("cuda")
    assert read["device"] == ("cuda" if cuda else "auto")
    limits = manifests.container("saccade")["resources"]["limits"]
    assert ("nvidia.com/gpu" in limits) == cuda
    assert cuda or read["threads"] == int(limits["cpu"])


def test_probes_ask_what_the_server_answers(manifests: Manifests) -> None:
    container = manifests.container("saccade")
    (port,) = container["ports"]
    assert f"SACCADE_PORT={port['containerPort']}" in DOCKERFILE
    asked = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness")}
    assert all(get == {"path": "/live", "port": port["name"]} for get in asked.values())
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": port["name"]}


def test_a_server_has_the_time_to_finish(manifests: Manifests) -> None:
    default = next(one.default for one in SERVE.params if one.name == "shutdown_timeout")
    told = manifests.environment("saccade").get("SACCADE_SHUTDOWN_TIMEOUT", default)
    pod, container = manifests.pod("saccade"), manifests.container("saccade")
    program, pause = container["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    # what is left then ends within two seconds
    assert pod["terminationGracePeriodSeconds"] > float(pause) + float(told) + 2


def test_the_server_writes_to_volumes_alone(manifests: Manifests) -> None:
    block = re.findall(r"^ENV ((?:.*\\\n)*.*)$", DOCKERFILE, re.MULTILINE)[-1]
    told = dict(pair.split("=", 1) for pair in block.replace("\\\n", " ").split())
    folders = [
        told[name] for name in told if name.endswith(("_DIR", "HOME", "ARTIFACTS", "TRACES"))
    ]
    assert len(folders) == 6
    container = manifests.container("saccade")
    mounts = [one["mountPath"] for one in container["volumeMounts"] if not one.get("readOnly")]
    assert "/tmp" in mounts
    for folder in folders:
        assert any(f"{folder}/".startswith(f"{mount}/") for mount in mounts)


def test_pod_monitors_look_where_metrics_are() -> None:
    manifests = built("cpu-replicas")
    monitors = Manifests(tuple(yaml.safe_load_all(kustomized(FOLDER / "components/podmonitor"))))
    for name, port in (("saccade", "http"), ("saccade-proxy", "metrics")):
        spec = monitors.kinds("PodMonitor")[name]["spec"]
        labels = manifests.deployment(name)["spec"]["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"] == labels
        (endpoint,) = spec["podMetricsEndpoints"]
        assert (endpoint["port"], endpoint["path"]) == (port, "/metrics")
        assert port in {one["name"] for one in manifests.container(name)["ports"]}


def test_an_overlay_of_one_s_own_is_built_as_the_page_says(tmp_path: Path) -> None:
    (page,) = [page for page in pages.pages() if page.path == "docs/kubernetes.md"]
    (block,) = [block for block in page.blocks if block.kind == "yaml"]
    shutil.copytree(FOLDER, tmp_path / "deploy/kubernetes")
    file = tmp_path / block.file
    file.parent.mkdir()
    file.write_text(block.text)
    (file.parent / "profiles.toml").write_text("[profiles]\n")
    manifests = Manifests(tuple(yaml.safe_load_all(kustomized(file.parent))))
    told = yaml.safe_load(block.text)
    assert manifests.container("saccade")["image"] == told["images"][0]["newName"] + ":cuda"
    options = dict(one.split("=") for one in told["configMapGenerator"][0]["literals"])
    environment = manifests.environment("saccade")
    assert environment == environment | options
    assert environment["SACCADE_DEVICE"] == "cuda"
    profiles = manifests.one("ConfigMap", "saccade-profiles")["data"]
    assert profiles == {"profiles.toml": "[profiles]\n"}
