"""Objects of deploy/kubernetes as kubectl puts them together, and what to ask of them."""

from __future__ import annotations

import functools
import ipaddress
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy/kubernetes"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
OLDEST_KUSTOMIZE = 5

Object = dict[str, Any]


@functools.cache
def _why_not() -> str:
    """Why manifests cannot be put together here; empty where they can."""
    if shutil.which("kubectl") is None:
        return "no kubectl here"
    command = ["kubectl", "version", "--client", "--output", "json"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    version: str = json.loads(told).get("kustomizeVersion", "v0")
    if int(version.lstrip("v").split(".")[0]) < OLDEST_KUSTOMIZE:
        return f"kubectl's kustomize is {version}, too old for components"
    return ""


@dataclass(frozen=True)
class Manifests:
    """Objects that are applied together."""

    objects: tuple[Object, ...]

    def kinds(self, kind: str) -> dict[str, Object]:
        """By name."""
        return {found["metadata"]["name"]: found for found in self.objects if found["kind"] == kind}

    def one(self, kind: str, name: str) -> Object:
        """The object of that name, of which a hash that kustomize appends is no part."""
        names = self.kinds(kind)
        (found,) = [names[full] for full in names if full == name or full.startswith(f"{name}-")]
        return found

    def deployment(self, name: str) -> Object:
        return self.kinds("Deployment")[name]

    def pod(self, name: str) -> Object:
        """The specification of a deployment's pods."""
        spec: Object = self.deployment(name)["spec"]["template"]["spec"]
        return spec

    def container(self, name: str) -> Object:
        """The only container of a deployment's pods."""
        (found,) = self.pod(name)["containers"]
        return dict(found)

    def environment(self, name: str) -> dict[str, str]:
        """What the container is told by maps of options and by itself, without secrets."""
        found: dict[str, str] = {}
        container = self.container(name)
        for source in container.get("envFrom", ()):
            if "configMapRef" in source:
                found |= self.kinds("ConfigMap")[source["configMapRef"]["name"]]["data"]
        return found | {
            entry["name"]: entry["value"] for entry in container.get("env", ()) if "value" in entry
        }


@functools.cache
def built(overlay: str) -> Manifests:
    """What ``kubectl apply --kustomize`` of an overlay would apply.

    Skips the test that asks where no kubectl, or one of another age, is installed.
    """
    return Manifests(tuple(yaml.safe_load_all(kustomized(FOLDER / "overlays" / overlay))))


def kustomized(folder: Path) -> str:
    """The YAML that kubectl makes of a folder, without a warning."""
    if why := _why_not():
        pytest.skip(why)
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


@dataclass(frozen=True)
class Pod:
    """Whom a network policy looks at: a pod by its labels and its namespace's name."""

    labels: dict[str, str]
    namespace: str = "saccade"


def _selects(selector: Object, labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels"}, "no other form is used"
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def _is_peer(peer: Object, who: Pod | str, own: str) -> bool:
    if isinstance(who, str):
        block = peer.get("ipBlock")
        address = ipaddress.ip_address(who)
        return (
            block is not None
            and address in ipaddress.ip_network(block["cidr"])
            and not any(address in ipaddress.ip_network(net) for net in block.get("except", ()))
        )
    if "ipBlock" in peer:
        return False
    named = {"kubernetes.io/metadata.name": who.namespace}
    space = (
        _selects(peer["namespaceSelector"], named)
        if "namespaceSelector" in peer
        else who.namespace == own
    )
    return space and _selects(peer.get("podSelector", {}), who.labels)


def _rules(manifests: Manifests, pod: Pod, direction: str) -> Iterator[Object] | None:
    """The rules that hold for a pod; None where no policy says anything of it."""
    policies = [
        policy["spec"]
        for policy in manifests.kinds("NetworkPolicy").values()
        if policy["metadata"]["namespace"] == pod.namespace
        and _selects(policy["spec"]["podSelector"], pod.labels)
        and direction in policy["spec"]["policyTypes"]
    ]
    if not policies:
        return None
    return (rule for policy in policies for rule in policy.get(direction.lower(), ()))


def allowed(
    manifests: Manifests,
    direction: str,
    pod: Pod,
    other: Pod | str,
    port: int | str,
    protocol: str = "TCP",
) -> bool:
    """Whether policies let a pod have a connection, as the API reference defines them.

    Args:
        manifests: where the policies are.
        direction: Ingress to ``pod`` from ``other``, or Egress from it.
        pod: whose policies count.
        other: the other end, a pod or the address of something that is none.
        port: where it is listened, a number or, of a pod, a name.
        protocol: TCP or UDP.
    """
    rules = _rules(manifests, pod, direction)
    if rules is None:
        return True
    peers = "from" if direction == "Ingress" else "to"
    return any(
        (peers not in rule or any(_is_peer(peer, other, pod.namespace) for peer in rule[peers]))
        and (
            "ports" not in rule
            or any(
                one["port"] == port and one.get("protocol", "TCP") == protocol
                for one in rule["ports"]
            )
        )
        for rule in rules
    )
