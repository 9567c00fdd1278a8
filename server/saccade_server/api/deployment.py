"""What must be equal on all servers behind one address, and a digest of it.

A client that is sent to one replica now and to another then must not notice: the same model, the
same prompts made for it, the same methods and profiles, the same limits, and artifacts that are the
same wherever they were uploaded. What of this differs from one start to the next for no reason of
the operator's (ports, folders, memory, keys, what the engine has room for beside it) is no part of
it. ``GET /v1/deployment`` shows the facts, ``/ready`` and ``/version`` their digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import saccade_server
from saccade_server.requests.profiles import Profile
from saccade_server.requests.receipts import fingerprint

if TYPE_CHECKING:
    from saccade_server.api.services import Services

HEADER = "x-saccade-deployment"
"""Of an answer: what answers. Of a request: what alone may answer it."""

DIGITS = 16
LIMITS = (
    "max_n", "max_prompts", "max_messages", "max_body_bytes", "max_artifact_bytes",
    "max_trace_bytes", "allow_image_urls", "allowed_media_domains", "max_images",
    "max_image_bytes", "max_fetched_bytes", "max_image_pixels", "max_request_pixels",
    "max_image_aspect", "request_timeout",
)  # fmt: skip
"""Settings of the API that decide whether a request is refused."""


@dataclass(frozen=True)
class Deployment:
    """What a server has in common with the others of its deployment."""

    facts: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits."""
        text = json.dumps(self.facts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def deployment_of(services: Services, profiles: Mapping[str, Profile]) -> Deployment:
    """The deployment of a server that serves these profiles.

    Raises:
        OSError: the folder of artifacts cannot be read or written.
    """
    info, settings = services.engine.info, services.settings
    offered = services.registry.methods.keys() - services.faults.keys()
    limits = {name: getattr(settings, name) for name in LIMITS}
    return Deployment(
        {
            "version": saccade_server.__version__,
            "model": settings.served_model_name,
            "fingerprint": info.fingerprint,
            "prompts": services.prompts.fingerprint,
            "dtype": info.dtype,
            "batch_invariant": info.batch_invariant,
            "methods": sorted(offered),
            "profiles": {
                profile.name: fingerprint(profile.interventions) for profile in profiles.values()
            },
            "default_profile": services.profiles.default,
            "artifacts": _store(services),
            "limits": {"context": services.room, **limits},
        }
    )


def _store(services: Services) -> str | None:
    """Which folder artifacts lie in; None for a private one that nobody can upload to."""
    settings = services.settings
    if settings.artifacts is None and not any(key.admin for key in settings.all_keys):
        return None
    return services.artifacts.identity()


class Membership:
    """The deployment that a server belongs to, made again when its profiles are others."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._profiles: tuple[Profile, ...] | None = None
        self._digest = ""

    @property
    def digest(self) -> str:
        """See :class:`Deployment`."""
        profiles = tuple(self._services.profiles.values())
        if self._profiles is None or not _same(profiles, self._profiles):
            self._digest = deployment_of(self._services, self._services.profiles).digest
            self._profiles = profiles
        return self._digest


def _same(some: tuple[Profile, ...], others: tuple[Profile, ...]) -> bool:
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))
