"""Ray Serve's choice of a replica, made by the key of the request's conversation.

Runs in Ray's HTTP proxies, one on every node that has replicas, and wherever else a handle of the
deployment is held. Each knows how many requests the replicas had when it last heard of them.
Ray's interface of request routers is young: what is used here is that of the pinned version.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from random import shuffle
from typing import Any

from ray.serve.exceptions import BackPressureError
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from saccade_server.affinity import HEADER
from saccade_server.cluster.names import LATE
from saccade_server.cluster.ranking import choose

logger = logging.getLogger("ray.serve")

_HEADER = HEADER.lower().encode()


class AffinityRouter(RequestRouter):
    """Equal keys to the same replica while it has room; without a key to the one with the fewest.

    A request that finds no replica with room waits, and gets Ray's error of back-pressure, which is
    a 503, when it has waited ``longest_wait`` seconds.
    """

    room = 64
    longest_wait = 30.0

    def initialize_state(self, **kwargs: Any) -> None:
        """Take ``room``, requests that a replica computes at once, and ``longest_wait``."""
        self.room = int(kwargs.get("room", self.room))
        self.longest_wait = float(kwargs.get("longest_wait", self.longest_wait))

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Ranks of replicas to try, for one attempt."""
        if pending_request is not None:  # else a second attempt would follow at once, and so on
            pending_request.routing_context.should_backoff = True
        # Of those with equally few requests the first is taken.
        shuffled = list(candidate_replicas)
        shuffle(shuffled)
        replicas = {each.replica_id.unique_id: each for each in shuffled}
        lengths = self.replica_queue_len_cache
        loads = {name: lengths.get(each.replica_id) or 0 for name, each in replicas.items()}
        # What is full here may have room again: the last rank holds it, and is asked.
        full = {name for name, each in replicas.items() if loads[name] >= each.max_ongoing_requests}
        late = frozenset(name for name, each in replicas.items() if each.routing_stats.get(LATE))
        key = None if pending_request is None else key_of(pending_request)
        ranks = choose(key, loads, self.room, late)
        tried = [rank for rank in ranks[:-1] if not full.issuperset(rank)]
        return [[replicas[name] for name in rank] for rank in [*tried, *ranks[-1:]]]

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        left = pending_request.created_at + self.longest_wait - time.time()
        try:
            async with asyncio.timeout(max(left, 0.0)):
                return await super()._choose_replica_for_request(pending_request, is_retry=is_retry)
        except TimeoutError:
            logger.warning("no replica had room for %.0f s", self.longest_wait)
            waiting = self.num_pending_requests
            raise BackPressureError(waiting, waiting, retry_after_s=1) from None


def key_of(request: PendingRequest) -> str | None:
    """The key of the conversation, or of the session that Ray's own header names; None: neither."""
    metadata = request.metadata
    if metadata.is_http_request and request.args and isinstance(request.args[0], bytes):
        # What the proxy made of the request a moment ago, in this process.
        headers = pickle.loads(request.args[0]).asgi_scope["headers"]
        for name, value in headers:
            if name == _HEADER and value:
                return str(value.decode("latin-1"))
    return metadata.session_id or None
