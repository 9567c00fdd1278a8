"""deploy/compose.replicas.yaml: the servers of compose.yaml, several of them behind a proxy."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ONE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
MANY: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose.replicas.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = MANY["services"]
REPLICAS = {name: service for name, service in SERVICES.items() if name != "proxy"}
PROXY = SERVICES["proxy"]
CONFIG = (ROOT / "deploy/haproxy/haproxy.cfg").read_text()
OF_A_PORT = ("ports", "profiles", "environment", "build", "deploy")


@pytest.mark.parametrize("name", REPLICAS)
def test_a_replica_is_the_server_of_the_other_file(name: str) -> None:
    service, server = REPLICAS[name], ONE["services"]["cpu" if name == "cpu" else "cuda"]
    differ = {key for key in server.keys() | service.keys() if service.get(key) != server.get(key)}
    assert differ <= {*OF_A_PORT, "networks"}
    assert "ports" not in service
    port = {"SACCADE_PORT=8000", "SACCADE_PORT=${SACCADE_PORT:-8000}"}
    assert set(service["environment"]) ^ set(server["environment"]) == port
    assert service["build"]["args"] == server["build"]["args"]
    assert (ROOT / "deploy" / service["build"]["context"]).samefile(ROOT)


def test_all_replicas_share_what_they_write() -> None:
    volumes = [service["volumes"] for service in REPLICAS.values()]
    assert all(each == volumes[0] for each in volumes)
    named = {str(volume).split(":")[0] for volume in volumes[0] if isinstance(volume, str)}
    assert {re.sub(r"\$\{\w+:-(\w+)\}?", r"\1", name) for name in named} >= {"cache"}
    assert MANY["volumes"] == ONE["volumes"]


@pytest.mark.parametrize("count", range(1, 9))
def test_a_profile_has_a_replica_for_each_gpu(count: int) -> None:
    chosen = [one for one in REPLICAS.values() if f"gpus-{count}" in one["profiles"]]
    devices = [one["deploy"]["resources"]["reservations"]["devices"] for one in chosen]
    assert [device["device_ids"] for (device,) in devices] == [[str(at)] for at in range(count)]
    assert all(device["capabilities"] == ["gpu"] for (device,) in devices)


def test_the_proxy_runs_in_every_profile_and_finds_all_replicas_by_one_name() -> None:
    assert "profiles" not in PROXY
    told = dict(entry.split("=", 1) for entry in PROXY["environment"])
    for service in REPLICAS.values():
        assert service["networks"]["default"]["aliases"] == [told["REPLICAS_HOST"]]
    for name in told:
        assert f"presetenv {name} " in CONFIG
    assert "presetenv REPLICAS_PORT 8000" in CONFIG
    most = re.search(r"presetenv REPLICAS_SLOTS (\d+)", CONFIG)
    assert most
    assert int(most[1]) >= len(REPLICAS)


def test_the_proxy_has_its_configuration_and_the_only_port() -> None:
    (published,) = PROXY["ports"]
    assert published.startswith("${PUBLISH:-127.0.0.1}:")
    assert published.endswith(":8000")
    assert "presetenv PROXY_BIND :8000" in CONFIG
    ((source, target, mode),) = [volume.split(":") for volume in PROXY["volumes"]]
    assert mode == "ro"
    for name in ("haproxy.cfg", "affinity.lua"):
        assert (ROOT / "deploy" / source / name).is_file()
    assert f"presetenv AFFINITY_LUA {target}/affinity.lua" in CONFIG
    assert PROXY["read_only"]
    assert PROXY["cap_drop"] == ["ALL"]
