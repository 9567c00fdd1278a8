"""Requests that name a deployment, and get an answer from no other.

A balancer that knows which deployment it stands before says so with every request and every probe.
A server that was replaced by another one, with another model, say, refuses before anything is read
or computed, with a status after which balancers and clients try elsewhere.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from saccade_server.api.deployment import HEADER, Membership
from saccade_server.api.errors import Unavailable, bounded
from saccade_server.api.layers.admission import READINESS, needs_place


class CheckDeployment:
    """Refuses what is meant for another deployment, but for questions about the server itself."""

    def __init__(self, app: ASGIApp, membership: Membership) -> None:
        self.app = app
        self.membership = membership

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (needs_place(scope["path"]) or scope["path"] in READINESS):
            wanted = Headers(scope=scope).get(HEADER, "").strip()
            if wanted and wanted != self.membership.digest:
                await _mismatch(wanted, self.membership.digest).response()(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _mismatch(wanted: str, found: str) -> Unavailable:
    message = (
        f"This server is of the deployment {found}, and the request is for {bounded(wanted)}: "
        "the model, the profiles, the limits or the artifacts' folder are others here."
    )
    return Unavailable(message, code="deployment_mismatch")
