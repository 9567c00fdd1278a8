"""Replicas of one application are of one deployment, or they do not start.

Nodes may have different files under the same path: another model, another file of profiles, another
folder of artifacts. So a replica that is about to serve writes down what it is, where Ray keeps
such notes for the whole cluster, and compares itself with what live replicas of the same options
have written. The first of them is right; one that differs fails with what differs, before any
request. Files that running replicas read again (:mod:`~saccade_server.cluster.files`) move all of
them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any, Protocol

from saccade_server.api.deployment import Deployment, deployment_of
from saccade_server.api.expected import DeploymentError, Expected
from saccade_server.api.services import Services
from saccade_server.serve_options.server import Choices

NAMESPACE = "saccade"
FIRST = "first"


class Notes(Protocol):
    """What all replicas of a cluster can read and write, and who of them lives."""

    def put(self, key: str, value: bytes, *, overwrite: bool) -> None:
        """Write ``value``, or leave what is there if it must not be overwritten."""

    def get(self, key: str) -> bytes | None:
        """What was written last."""

    def drop(self, key: str) -> None:
        """Forget it."""

    def keys(self, prefix: str) -> list[str]:
        """Everything that was written under names with this beginning."""

    def lives(self, replica: str) -> bool:
        """Whether that replica's actor has not ended."""


@dataclass(frozen=True)
class Agreement:
    """Among the replicas of one application that were given the same options."""

    notes: Notes
    about: str

    def join(self, replica: str, deployment: Deployment) -> None:
        """Compare ``replica`` with the others, and write it down if it is like them.

        Raises:
            DeploymentError: it differs, with what differs.
        """
        mine = _note(replica, deployment)
        for key in self.notes.keys(f"{self.about}/"):
            self._compare(key, replica, deployment)
        first = f"{self.about}/{FIRST}"
        self.notes.put(first, mine, overwrite=False)  # of two at the same time one reads the other
        self._compare(first, replica, deployment)
        self.notes.put(f"{self.about}/{replica}", mine, overwrite=True)

    def move(self, replica: str, deployment: Deployment) -> None:
        """Write down what ``replica`` has become, together with the others."""
        mine = _note(replica, deployment)
        self.notes.put(f"{self.about}/{replica}", mine, overwrite=True)
        first = _read(self.notes.get(f"{self.about}/{FIRST}"))
        if first is not None and first["replica"] == replica:
            self.notes.put(f"{self.about}/{FIRST}", mine, overwrite=True)

    def _compare(self, key: str, replica: str, deployment: Deployment) -> None:
        other = _read(self.notes.get(key))
        if other is None or other["replica"] == replica:
            return
        if not self.notes.lives(other["replica"]):
            self.notes.drop(key)
            return
        try:
            Expected(other["digest"], other["facts"]).check(deployment)
        except DeploymentError as error:
            raise DeploymentError(f"unlike replica {other['replica']}, {error}") from None


def _note(replica: str, deployment: Deployment) -> bytes:
    said = {"replica": replica, "digest": deployment.digest, "facts": deployment.facts}
    return json.dumps(said).encode()


def _read(note: bytes | None) -> dict[str, Any] | None:
    if note is None:
        return None
    found: dict[str, Any] = json.loads(note)
    return found


def about(application: str, choices: Choices) -> str:
    """What replicas agree about: others, of an older version of the application, may differ."""
    options = hashlib.sha256(repr(astuple(choices)).encode()).hexdigest()[:16]
    return f"{application}/{options}"


class RayNotes:
    """In the store of Ray's head; its calls wait for the network."""

    def put(self, key: str, value: bytes, *, overwrite: bool) -> None:
        """See :class:`Notes`."""
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(key, value, overwrite, namespace=NAMESPACE)

    def get(self, key: str) -> bytes | None:
        """See :class:`Notes`."""
        from ray.experimental.internal_kv import _internal_kv_get

        found: bytes | None = _internal_kv_get(key, namespace=NAMESPACE)
        return found

    def drop(self, key: str) -> None:
        """See :class:`Notes`."""
        from ray.experimental.internal_kv import _internal_kv_del

        _internal_kv_del(key, namespace=NAMESPACE)

    def keys(self, prefix: str) -> list[str]:
        """See :class:`Notes`."""
        from ray.experimental.internal_kv import _internal_kv_list

        return [key.decode() for key in _internal_kv_list(prefix, namespace=NAMESPACE)]

    def lives(self, replica: str) -> bool:
        """See :class:`Notes`."""
        import ray

        try:
            ray.get_actor(replica, namespace="serve")
        except ValueError:
            return False
        return True


@dataclass(frozen=True)
class Member:
    """One replica among those that agree."""

    agreement: Agreement
    replica: str
    deployment: Callable[[], Deployment]
    """What it is now."""

    def join(self) -> None:
        """Compare it with the others; waits for the network.

        Raises:
            DeploymentError: it differs from them.
        """
        self.agreement.join(self.replica, self.deployment())

    def move(self) -> None:
        """Write down what it has become, together with the others; waits for the network."""
        self.agreement.move(self.replica, self.deployment())


def deployment_with_keys(services: Services) -> Deployment:
    """What replicas agree about: the deployment, and who may ask for how much."""
    deployment = deployment_of(services, services.profiles)
    kept = sorted((repr(key), key.digest.hex()) for key in services.keys.keys)
    keys = hashlib.sha256(repr(kept).encode()).hexdigest()[:16]
    return Deployment({**deployment.facts, "keys": keys})
