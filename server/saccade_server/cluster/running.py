"""Run the application in a Ray cluster until told to stop."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from functools import cached_property
from types import FrameType
from typing import Any

import ray
from ray import serve
from ray.serve import RunTarget
from ray.serve._private.common import ReplicaState
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from saccade_server.cluster.application import NAME, application, gpus, http_options
from saccade_server.cluster.entrance import announce
from saccade_server.cluster.rounds import SECONDS, reload
from saccade_server.exit_codes import ExitCode
from saccade_server.options import fail
from saccade_server.serve_options.cluster import ClusterOptions
from saccade_server.serve_options.server import Choices
from saccade_server.signals import Terminal, heeded

logger = logging.getLogger("saccade")

OBJECT_STORE_BYTES = 128 * 2**20
"""Of a Ray that is started here: what crosses it are requests and pieces of answers."""

LOOK_SECONDS = 0.5


class Told:
    """What signals have asked for."""

    def __init__(self) -> None:
        self.to_end = threading.Event()
        self.to_reload = threading.Event()


class Running:
    """The replicas of the application; see :class:`~saccade_server.cluster.rounds.Replicas`."""

    @cached_property
    def _handle(self) -> DeploymentHandle[Any]:
        return serve.get_app_handle(NAME)

    def count(self) -> int:
        """How many run."""
        states = serve.status().applications[NAME].deployments[NAME].replica_states
        return states.get(ReplicaState.RUNNING, 0)

    def ask(self, method: str, round: str) -> list[Any]:
        """Call the method of each."""
        asked = self._handle.broadcast(method, round)
        return asked.results(timeout_s=SECONDS, return_exceptions=True)


def run(cluster: ClusterOptions, choices: Choices) -> ExitCode:
    """Serve until a signal asks for the end. Returns the process's exit code."""
    _heed(_leave_now)
    try:
        _join(cluster.ray_address)
    except ConnectionError as error:
        raise fail(ValueError(f"--ray-address {cluster.ray_address}: {error}")) from error
    told, terminal = Told(), Terminal()

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP and not terminal.is_gone:
            told.to_reload.set()
            return
        if told.to_end.is_set():
            _leave_now(number, frame)
        told.to_end.set()

    _heed(note)  # only now: Ray takes the signals for itself when it starts
    try:
        return _serve(cluster, choices, told)
    finally:
        ray.shutdown()


def _heed(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in heeded():
        signal.signal(number, handler)


def _leave_now(number: int, frame: FrameType | None) -> None:
    raise SystemExit(ExitCode.FAILED)


def _join(address: str | None) -> None:
    if address is None:
        announce()  # the environment of Ray's processes is this one's
        ray.init(include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES)
    else:
        ray.init(address)


def _serve(cluster: ClusterOptions, choices: Choices, told: Told) -> ExitCode:
    try:
        app = application(cluster, choices, gpus=gpus(choices))
    except ValueError as error:
        raise fail(error) from error
    if serve.status().proxies:
        logger.warning("Ray Serve runs in this cluster already: its address holds, not --host")
    # The proxy shares its port with whoever listens there; the command has tried it alone.
    serve.start(http_options=http_options(choices))
    try:
        serve.run_many([RunTarget(app, name=NAME)], wait_for_applications_running=False)
        return _until(choices, told)
    finally:
        _leave(cluster)


def _until(choices: Choices, told: Told) -> ExitCode:
    """Wait until told to end, or until no replica could be started."""
    greeted, replicas = False, Running()
    while not told.to_end.wait(LOOK_SECONDS):
        if told.to_reload.is_set():
            told.to_reload.clear()
            reload(replicas)
        status = serve.status().applications.get(NAME)
        if status is None or greeted:
            continue
        if status.status == ApplicationStatus.DEPLOY_FAILED:
            logger.error("no replica could start: %s", _reason(status))
            return ExitCode.MODEL
        if status.status == ApplicationStatus.RUNNING:
            greeted = True
            host, port = choices.server["host"], choices.server["port"]
            print(f"Serving at http://{host}:{port} (OpenAI-compatible: /v1)", flush=True)
    logger.info("draining, at most %.0f s", choices.settings["shutdown_timeout"])
    return ExitCode.STOPPED


def _reason(status: ApplicationStatusOverview) -> str:
    """The last line of what Ray says of a deployment, which is the error that ended it."""
    texts = [each.message for each in status.deployments.values() if each.message]
    lines = [line.strip() for line in (texts or [status.message])[0].splitlines() if line.strip()]
    return lines[-1] if lines else "Ray does not say why"


def _leave(cluster: ClusterOptions) -> None:
    """End the application as Ray ends it, replicas finishing what they have; then what is ours."""
    serve.delete(NAME)
    if cluster.ray_address is None:
        serve.shutdown()  # type: ignore[no-untyped-call]
