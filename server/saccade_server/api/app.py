"""The application: routes, middleware and error handlers around one engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.middleware import Middleware

import saccade_server
from saccade_interventions.registry import Registry
from saccade_server.api.access.key_file import check_tokens
from saccade_server.api.artifact_expiry import expire_artifacts
from saccade_server.api.artifacts import artifacts_router
from saccade_server.api.chat import chat_router
from saccade_server.api.completions import completions_router
from saccade_server.api.deployment_facts import deployment_router
from saccade_server.api.errors import REFUSALS, MethodNotAllowed, from_exception
from saccade_server.api.health import health_router
from saccade_server.api.images.fetch import ImageFetcher
from saccade_server.api.interventions import interventions_router
from saccade_server.api.layers.access_line import AccessLine
from saccade_server.api.layers.admission import Admission
from saccade_server.api.layers.auth import Authenticate
from saccade_server.api.layers.bodies import LimitBodies
from saccade_server.api.layers.cors import Cors
from saccade_server.api.layers.deployment import CheckDeployment
from saccade_server.api.layers.direct import Direct, handlers_of, plain_paths
from saccade_server.api.layers.ending import EndUnanswered
from saccade_server.api.layers.heads import LimitHead
from saccade_server.api.layers.hosts import CheckHost
from saccade_server.api.layers.observe import Observe
from saccade_server.api.layers.rates import LimitRates
from saccade_server.api.layers.read_out import ReadOut
from saccade_server.api.layers.record import Observer
from saccade_server.api.metrics.route import Collect, families_of, metrics_router
from saccade_server.api.models_list import models_router
from saccade_server.api.openapi.document import document
from saccade_server.api.openapi.page import DOCS_PARTS, DOCS_POLICY
from saccade_server.api.pages import add_page
from saccade_server.api.playground.page import PLAYGROUND_PARTS, PLAYGROUND_POLICY
from saccade_server.api.profiles_list import profiles_router
from saccade_server.api.score import score_router
from saccade_server.api.served_profiles import ServedProfiles
from saccade_server.api.services import Services
from saccade_server.api.settings import ApiSettings
from saccade_server.api.tokenize import tokenize_router
from saccade_server.api.traces.route import traces_router
from saccade_server.engine.client import EngineClient
from saccade_server.models.prompt import PromptProcessor
from saccade_server.requests.profiles import Profile


def create_app(
    engine: EngineClient,
    prompts: PromptProcessor,
    registry: Registry,
    settings: ApiSettings,
    *,
    fetcher: ImageFetcher | None = None,
    profiles: Mapping[str, Profile] | None = None,
    faults: Mapping[str, str] | None = None,
    tested: frozenset[str] = frozenset(),
    observers: Sequence[Observer] = (),
    collect: Collect = families_of,
) -> FastAPI:
    """Make the application. ``app.state.lifecycle`` is how the process shuts it down, and
    ``app.state.reloadables`` lists the files that it reads again, as ``api/reloading.py`` has it.

    The engine belongs to the caller, who closes it after the application has ended, and closes
    ``app.state.services`` if the application was run without its lifespan.

    Args:
        profiles: the operator's bundles of interventions.
        faults: methods that failed their self-test, and why; they are not offered.
        tested: methods that passed it.
        observers: who else looks at every request, in this order.
        collect: what /metrics says.

    Raises:
        ProfileError: the model cannot run one of the profiles.
        DeploymentError: this is not the deployment that is expected.
        OSError: the folder of artifacts cannot be used.
    """
    services = Services(
        engine,
        prompts,
        registry,
        settings,
        fetcher or ImageFetcher(settings),
        ServedProfiles(profiles or {}, settings.default_profile),
        faults or {},
        tested,
    )
    try:
        services.check_profiles(services.profiles)
        services.check_deployment(services.profiles)
        check_tokens(services.keys.keys, services.room)
    except (ValueError, OSError):
        services.close()
        raise

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        looking_after = asyncio.create_task(expire_artifacts(services))
        yield
        looking_after.cancel()
        services.close()

    answering = [chat_router(services), completions_router(services), score_router(services)]
    others = (
        tokenize_router,
        models_router,
        interventions_router,
        profiles_router,
        artifacts_router,
        traces_router,
        health_router,
        deployment_router,
    )
    routers = (
        *answering,
        *(make(services) for make in others),
        metrics_router(services, collect),
    )
    app = FastAPI(
        title="Saccade",
        version=saccade_server.__version__,
        docs_url=None,  # a page that loads scripts from elsewhere; openapi/page.py has ours
        redoc_url=None,
        redirect_slashes=False,
        middleware=[
            Middleware(
                Observe, observers=(*_observers(services), *observers), paths=plain_paths(routers)
            ),
            *_around(services),
            Middleware(Direct, handlers=handlers_of(answering)),
        ],
        lifespan=lifespan,
    )
    for router in routers:
        app.include_router(router)
    add_page(app.router, DOCS_PARTS, DOCS_POLICY)
    add_page(app.router, PLAYGROUND_PARTS, PLAYGROUND_POLICY)
    for refusal in REFUSALS:
        app.add_exception_handler(refusal, _refusing(routers))
    app.openapi = lambda: document(app, settings)  # type: ignore[method-assign]
    app.state.lifecycle = services.lifecycle
    app.state.services = services
    app.state.reloadables = []
    return app


def _observers(services: Services) -> tuple[Observer, ...]:
    """Who looks at every request; first of all its trace is known."""
    line = (AccessLine(),) if services.settings.access_log else ()
    return (services.spans.observer, services.tally, *line)


def _around(services: Services) -> list[Middleware]:
    """The middleware between those who look on and the routes, outermost first.

    Every answer has an id, a log line and, for pages that may read it, the headers of CORS; a
    preflight is answered before anything can refuse it. Strangers take neither memory nor a place.
    A body is there before its request asks for a place.
    """
    settings, lifecycle = services.settings, services.lifecycle
    return [
        *([Middleware(Cors, origins=settings.cors_origins)] if settings.cors_origins else []),
        Middleware(EndUnanswered, lifecycle=lifecycle),
        Middleware(ReadOut, settings=settings),
        Middleware(LimitHead, settings=settings),
        Middleware(CheckHost, settings=settings),
        Middleware(CheckDeployment, membership=services.membership),
        Middleware(Authenticate, keys=services.keys, settings=settings),
        Middleware(LimitRates, rates=services.rates),
        Middleware(LimitBodies, settings=settings),
        Middleware(
            Admission,
            lifecycle=lifecycle,
            settings=settings,
            keys=services.keys,
            backlog=services.backlog,
        ),
    ]


def _refusing(routers: Iterable[APIRouter]) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Answer refusals; a 405 names the methods of all routes of a path, not of the first found."""
    routes = [r for router in routers for r in router.routes if isinstance(r, APIRoute)]

    async def refuse(request: Request, error: Exception) -> Response:
        refusal = from_exception(error)
        if isinstance(refusal, MethodNotAllowed):
            found = [r for r in routes if r.path_regex.match(request.scope["path"])]
            offered = {method for route in found for method in route.methods or ()}
            if offered:
                refusal.headers["Allow"] = ", ".join(sorted(offered))
        return refusal.response()

    return refuse
