"""What puts replicas behind one address, as the chaos sees it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

REPLICAS = 3
ADMIN_KEY = "chaos"


@dataclass(frozen=True)
class Shared:
    """What all replicas have: folders of artifacts and traces, a file of profiles, and logs.

    The demo model is served on a CPU with one thread, prefix caching, :data:`ADMIN_KEY`, no other
    key, and without a self-test.
    """

    artifacts: Path
    traces: Path
    profiles: Path
    logs: Path


class Backend(Protocol):
    """:data:`REPLICAS` replicas behind one address; made by what starts them all.

    Replicas are counted from 0, and whichever was killed keeps its number when it is back.
    """

    name: str
    url: str

    def kill(self, replica: int) -> None:
        """End a replica and its engine by SIGKILL, at once; returns when both are gone."""

    def restore(self, replica: int) -> None:
        """Bring back a replica that was killed; returns when it takes requests behind the address.

        What restores by itself is only waited for.
        """

    def drain(self, replica: int) -> None:
        """Have a replica finish what it has begun, and end; returns when it has ended.

        Raises:
            RuntimeError: it ended otherwise, or not at all.
        """

    def lost(self) -> int:
        """The interventions that live replicas say should have run and did not."""

    def close(self) -> None:
        """End everything."""
