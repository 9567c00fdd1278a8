"""Which replica a request goes to: the one that its key belongs to, as long as that has room.

Rendezvous hashing: every replica has a weight for every key, and a key belongs to the replica with
the highest. A replica that comes or goes moves only the keys that are its own, and whoever knows
the replicas' names finds the same order, without telling anybody (Thaler and Ravishankar, 1998).

Bounded load: a replica that has more than its share of the requests is passed over for the next in
that order (Mirrokni, Thorup and Zadimoghaddam, 2016). Below ``room``, what a replica computes at
once, nothing is gained by going elsewhere, whatever others have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

SLACK = 1.25
"""Times the mean load that a replica may have before keys of its own go elsewhere."""


def ranked(key: str, names: Iterable[str]) -> list[str]:
    """``names`` from the one that ``key`` belongs to on; the same everywhere."""
    return sorted(names, key=lambda name: (_weight(key, name), name), reverse=True)


def _weight(key: str, name: str) -> bytes:
    return blake2b(f"{len(key)}:{key}:{name}".encode("utf-8", "replace"), digest_size=8).digest()


def bound(loads: Mapping[str, int], room: int) -> int:
    """Requests that a replica may have, the next one included, before it is passed over.

    Args:
        loads: requests in flight by replica, as far as known.
        room: requests that a replica computes at once.
    """
    if not loads:
        return room
    return max(room, math.ceil(SLACK * (sum(loads.values()) + 1) / len(loads)))


def choose(
    key: str | None, loads: Mapping[str, int], room: int, late: frozenset[str] = frozenset()
) -> list[Sequence[str]]:
    """Replicas to try, in ranks; within a rank the one with the fewest requests is taken.

    Args:
        key: what the request's conversation is known by; None: any replica is as good.
        loads: requests in flight by replica.
        room: requests that a replica computes at once.
        late: replicas that want no requests now; they come last.
    """
    well = [name for name in loads if name not in late]
    ranks: list[Sequence[str]] = []
    if key is not None:
        most = bound({name: loads[name] for name in well}, room)
        ranks = [[name] for name in ranked(key, well) if loads[name] < most]
    if well:
        ranks.append(well)
    if late:
        ranks.append([name for name in loads if name in late])
    return [rank for rank in ranks if rank]
