"""The router as Ray Serve drives it, with replicas that only count."""

import asyncio
import functools
import pickle
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

pytest.importorskip("ray.serve", reason="needs the extra ray")

from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    ReplicaID,
    RequestMetadata,
    RequestProtocol,
    StreamingHTTPRequest,
)
from ray.serve.exceptions import BackPressureError
from ray.serve.request_router import PendingRequest

from saccade_server.affinity import HEADER
from saccade_server.cluster.names import LATE
from saccade_server.cluster.ranking import ranked
from saccade_server.cluster.router import AffinityRouter, key_of

DEPLOYMENT = DeploymentID("saccade", "saccade")
NAMES = ["one", "two", "three"]


def alone(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on an event loop of its own."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))

    return run


@dataclass
class Counting:
    """A replica, as far as the router sees it."""

    name: str
    length: int = 0
    max_ongoing_requests: int = 10
    routing_stats: dict[str, Any] = field(default_factory=dict)
    asked: int = 0

    @property
    def replica_id(self) -> ReplicaID:
        return ReplicaID(self.name, DEPLOYMENT)

    async def get_queue_len(self, *, deadline_s: float) -> int:
        self.asked += 1
        return self.length

    def push_proxy_handle(self, handle: object) -> None:
        pass


def asking(key: str | None = None, session: str = "", name: str = "r") -> PendingRequest:
    """A request as a proxy of Ray passes it on."""
    headers = [(b"host", b"x")]
    if key is not None:
        headers.append((HEADER.lower().encode(), key.encode()))
    scope = {"type": "http", "headers": headers}
    body = pickle.dumps(StreamingHTTPRequest(scope, proxy_actor_name="proxy"))
    metadata = RequestMetadata(
        request_id=name,
        internal_request_id=name,
        session_id=session,
        is_streaming=True,
        _request_protocol=RequestProtocol.HTTP,
    )
    return PendingRequest(args=[body], kwargs={}, metadata=metadata)


@pytest.fixture
def replicas() -> list[Counting]:
    return [Counting(name) for name in NAMES]


async def routed(replicas: list[Counting], **kwargs: Any) -> AffinityRouter:
    router = AffinityRouter(
        deployment_id=DEPLOYMENT,
        handle_source=DeploymentHandleSource.REPLICA,
        use_replica_queue_len_cache=True,
        initial_backoff_s=0.01,
        max_backoff_s=0.02,
    )
    router.initialize_state(**{"room": 4, "longest_wait": 5.0, **kwargs})
    router.update_replicas(replicas)  # type: ignore[arg-type]
    await asyncio.sleep(0.01)  # their lengths are asked for
    return router


async def chosen(router: AffinityRouter, request: PendingRequest) -> str:
    replica = await router._choose_replica_for_request(request)
    return str(replica.replica_id.unique_id)


@alone
async def test_the_key_is_the_header_or_rays_session_or_none() -> None:
    assert key_of(asking("0123456789abcdef", "other")) == "0123456789abcdef"
    assert key_of(asking(None, "session")) == "session"
    assert key_of(asking()) is None


@alone
async def test_equal_keys_go_to_one_replica(replicas: list[Counting]) -> None:
    router = await routed(replicas)
    for key in ("a", "b", "c", "d", "e", "f"):
        expected = ranked(key, NAMES)[0]
        found = [await chosen(router, asking(key, name=f"{key}{n}")) for n in range(3)]
        assert found == [expected] * 3


@alone
async def test_a_replica_over_the_bound_is_passed_over(replicas: list[Counting]) -> None:
    first, second, _ = ranked("key", NAMES)
    router = await routed(replicas)
    for _ in range(4):
        router.on_send_request(ReplicaID(first, DEPLOYMENT))
    assert await chosen(router, asking("key")) == second


@alone
async def test_a_full_replica_is_passed_over_although_its_load_was_not_known(
    replicas: list[Counting],
) -> None:
    """Another proxy has filled it: this one hears of it when it asks."""
    first, second, _ = ranked("key", NAMES)
    router = await routed(replicas)
    full = next(each for each in replicas if each.name == first)
    full.length = full.max_ongoing_requests
    router.on_new_queue_len_info(full.replica_id, full.length)
    assert await chosen(router, asking("key")) == second


@alone
async def test_a_late_replica_is_passed_over(replicas: list[Counting]) -> None:
    first, second, _ = ranked("key", NAMES)
    next(each for each in replicas if each.name == first).routing_stats = {LATE: True}
    router = await routed(replicas)
    assert await chosen(router, asking("key")) == second


@alone
async def test_without_a_key_the_one_with_the_fewest_is_taken(replicas: list[Counting]) -> None:
    router = await routed(replicas)
    for name, count in zip(NAMES, (2, 1, 3), strict=True):
        for _ in range(count):
            router.on_send_request(ReplicaID(name, DEPLOYMENT))
    assert await chosen(router, asking()) == "two"


@alone
async def test_what_waits_too_long_is_refused_and_what_waits_is_served(
    replicas: list[Counting],
) -> None:
    for each in replicas:
        each.length = each.max_ongoing_requests
    router = await routed(replicas, longest_wait=0.3)
    with pytest.raises(BackPressureError) as refusal:
        await chosen(router, asking("key", name="refused"))
    assert refusal.value.status_code == 503
    assert refusal.value.retry_after_s == 1
    waiting = asyncio.create_task(chosen(router, asking("key", name="served")))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    replicas[1].length = 0
    assert await asyncio.wait_for(waiting, 5) == replicas[1].name


@alone
async def test_no_replica_at_all_is_refused_too() -> None:
    router = await routed([], longest_wait=0.1)
    with pytest.raises(BackPressureError):
        await chosen(router, asking("key"))


@alone
async def test_attempts_on_full_replicas_are_spaced(replicas: list[Counting]) -> None:
    """Each asks every replica: a request that waits must not do so without a pause."""
    for each in replicas:
        each.length = each.max_ongoing_requests
    router = await routed(replicas, longest_wait=0.3)
    with pytest.raises(BackPressureError):
        await chosen(router, asking("key"))
    assert max(each.asked for each in replicas) < 200
