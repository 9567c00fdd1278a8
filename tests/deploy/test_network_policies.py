"""Who reaches whom: network policies, read as Kubernetes defines them."""

import pytest

from saccade_testing.manifests import OVERLAYS, Manifests, Pod, allowed, built

PROMETHEUS = Pod({"app": "prometheus"}, "monitoring")
STRANGER = Pod({"app": "web"}, "elsewhere")
NEIGHBOUR = Pod({"app": "web"})
METADATA = "169.254.169.254"
HUB = "151.101.0.223"


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def manifests(overlay: str) -> Manifests:
    return built(overlay)


def pods(manifests: Manifests) -> dict[str, Pod]:
    return {
        name: Pod(found["spec"]["template"]["metadata"]["labels"])
        for name, found in manifests.kinds("Deployment").items()
    }


def test_servers_hear_those_who_are_meant(manifests: Manifests, overlay: str) -> None:
    server = pods(manifests)["saccade"]
    behind = overlay.endswith("replicas")
    assert not allowed(manifests, "Ingress", server, STRANGER, "http")
    assert allowed(manifests, "Ingress", server, PROMETHEUS, "http")
    assert allowed(manifests, "Ingress", server, NEIGHBOUR, "http") is not behind
    assert not allowed(manifests, "Ingress", server, NEIGHBOUR, 22)


def test_servers_reach_names_and_the_public_web_alone(manifests: Manifests) -> None:
    server = pods(manifests)["saccade"]
    resolver = Pod({"k8s-app": "kube-dns"}, "kube-system")
    for protocol in ("UDP", "TCP"):
        assert allowed(manifests, "Egress", server, resolver, 53, protocol)
    assert allowed(manifests, "Egress", server, HUB, 443)
    assert allowed(manifests, "Egress", server, "2606:4700::6810:1", 443)
    assert not allowed(manifests, "Egress", server, HUB, 80)
    for private in (METADATA, "10.0.0.1", "172.20.1.1", "192.168.1.1", "100.64.1.1", "fd00::1"):
        assert not allowed(manifests, "Egress", server, private, 443), private
    assert not allowed(manifests, "Egress", server, server, "http")
    assert not allowed(manifests, "Egress", server, STRANGER, 443)
    assert allowed(manifests, "Egress", server, Pod({}, "monitoring"), 4318)


@pytest.mark.parametrize("overlay", [name for name in OVERLAYS if name.endswith("replicas")])
def test_proxies_are_the_way_to_servers(manifests: Manifests) -> None:
    server, proxy = pods(manifests)["saccade"], pods(manifests)["saccade-proxy"]
    assert allowed(manifests, "Ingress", proxy, STRANGER, "http")
    assert allowed(manifests, "Ingress", proxy, HUB, "http")
    assert allowed(manifests, "Ingress", proxy, PROMETHEUS, "metrics")
    assert not allowed(manifests, "Ingress", proxy, STRANGER, "metrics")
    assert allowed(manifests, "Egress", proxy, server, "http")
    assert allowed(manifests, "Ingress", server, proxy, "http")
    assert not allowed(manifests, "Egress", proxy, STRANGER, "http")
    assert not allowed(manifests, "Egress", proxy, HUB, 443)
