"""Requests that name a deployment, and get an answer from no other.

A balancer that knows which deployment it stands before says so with every request and every probe.
A server that was replaced by another one, with another model, say, refuses before anything is read
or computed, with a status after which balancers and clients try elsewhere.
"""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saccade_server.api.deployment import HEADER, Membership
from saccade_server.api.errors import Unavailable, bounded
from saccade_server.api.layers.admission import READINESS, needs_place


class CheckDeployment:
    """Refuses what is meant for another deployment, but for questions about the server itself.

    Whoever asks whether requests are welcome hears which deployment this is, whatever the answer:
    a replica that is full is still one of it.
    """

    def __init__(self, app: ASGIApp, membership: Membership) -> None:
        self.app = app
        self.membership = membership

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asks = scope["type"] == "http" and scope["path"] in READINESS
        if not asks and (scope["type"] != "http" or not needs_place(scope["path"])):
            await self.app(scope, receive, send)
            return
        wanted, found = Headers(scope=scope).get(HEADER, "").strip(), self.membership.digest
        answer = self.app if wanted in ("", found) else _mismatch(wanted, found).response()
        await answer(scope, receive, _naming(found, send) if asks else send)


def _naming(deployment: str, send: Send) -> Send:
    async def named_send(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)[HEADER] = deployment
        await send(message)

    return named_send


def _mismatch(wanted: str, found: str) -> Unavailable:
    message = (
        f"This server is of the deployment {found}, and the request is for {bounded(wanted)}: "
        "the model, the profiles, the limits or the artifacts' folder are others here."
    )
    return Unavailable(message, code="deployment_mismatch")
