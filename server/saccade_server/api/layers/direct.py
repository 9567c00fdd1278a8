"""The innermost layer: what is asked most goes to its route without the framework in between.

The framework would try every route, make room for dependencies that these do not have, and look
through the answer. Their documents, and any other method of their paths, are still its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from saccade_server.api.errors import REFUSALS, from_exception
from saccade_server.api.layers.record import record_of

Handler = Callable[[Request], Awaitable[Response]]


def handlers_of(routers: Iterable[APIRouter]) -> dict[tuple[str, str], Handler]:
    """The handlers of all routes, which take nothing but the request."""
    routes = [route for router in routers for route in router.routes]
    return {
        (method, route.path): route.endpoint
        for route in routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }


def plain_paths(routers: Iterable[APIRouter]) -> frozenset[str]:
    """The paths of routes that have one path alone."""
    paths = {
        route.path for router in routers for route in router.routes if isinstance(route, APIRoute)
    }
    return frozenset(path for path in paths if "{" not in path)


class Direct:
    """Calls the handlers of (method, path); everything else goes on to the application."""

    def __init__(self, app: ASGIApp, handlers: Mapping[tuple[str, str], Handler]) -> None:
        self.app = app
        self.handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = None
        if scope["type"] == "http" and not scope["root_path"]:
            handler = self.handlers.get((scope["method"], scope["path"]))
        if handler is None:
            await self.app(scope, receive, send)
            return
        record_of(scope).route = scope["path"]
        try:
            response = await handler(Request(scope, receive, send))
        except REFUSALS as error:
            response = from_exception(error).response()
        await response(scope, receive, send)
