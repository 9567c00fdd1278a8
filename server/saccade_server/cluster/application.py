"""The Ray Serve application: replicas of one server behind one address.

``saccade cluster`` runs it, and so does Ray's own ``serve run`` or ``serve deploy`` by its import
path, with the command's options as one argument::

    serve run saccade_server.cluster.application:build options="--replicas 4 --max-num-seqs 32"
"""

# Annotations stay what they are: Ray looks for the type of :func:`build`'s argument.
import math
import shlex
from typing import Any

import ray
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application

from saccade_server.cluster.replica import Replica
from saccade_server.engine.remote import STOP_TIMEOUT
from saccade_server.serve_options.cluster import ClusterOptions
from saccade_server.serve_options.server import Choices

NAME = "saccade"
"""Of the application and its one deployment, unless Ray is told another."""

ROUTER = "saccade_server.cluster.router.AffinityRouter"

OTHERS = 64
"""Requests that a replica gets beyond those it answers at once: probes, and what it refuses."""

HEALTH_SECONDS = 5.0
HEALTH_TIMEOUT = 10.0
STATS_SECONDS = 2.0
DRAIN_LOOP_SECONDS = 0.5
STARTS = 3
"""Times that Ray tries to start a replica before it gives up."""


class Arguments(BaseModel):
    """What ``serve run`` takes behind the import path."""

    model_config = ConfigDict(extra="forbid")

    options: str = ""
    """Those of ``saccade cluster``, as on its command line."""


def build(arguments: Arguments) -> Application:
    """The application for Ray's own commands; the address is Ray's then.

    Raises:
        ValueError: an option is wrong; the message says which.
    """
    from saccade_server.cluster.command import parsed

    cluster, choices = parsed(shlex.split(arguments.options))
    return application(cluster, choices, gpus=gpus(choices))


def gpus(choices: Choices) -> int:
    """GPUs of a replica: one if the model is to run on one, or if the cluster has any.

    Raises:
        ValueError: the options name one of several GPUs; Ray chooses.
    """
    device = choices.engine["device"]
    if device.startswith("cuda:"):
        raise ValueError(f"--device {device}: Ray gives each replica its own GPU; say cuda")
    if device != "auto":
        return int(device == "cuda")
    return int(ray.is_initialized() and _resources().get("GPU", 0) > 0)


def _resources() -> dict[str, float]:
    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return found


def application(cluster: ClusterOptions, choices: Choices, *, gpus: int) -> Application:
    """Replicas of one GPU each, or of none, that are as many as requests ask for."""
    settings, room = choices.settings, choices.engine["max_num_seqs"]
    if cluster.max_replicas is None:
        scale: dict[str, Any] = {"num_replicas": cluster.replicas}
    else:
        target = cluster.target_requests or room
        scale = {
            "autoscaling_config": {
                "min_replicas": cluster.replicas,
                "initial_replicas": cluster.replicas,
                "max_replicas": cluster.max_replicas,
                "target_ongoing_requests": target,
                "upscale_delay_s": cluster.upscale_delay,
                "downscale_delay_s": cluster.downscale_delay,
            }
        }
    deployed: Any = serve.deployment(Replica, name=NAME)
    deployment = deployed.options(
        **scale,
        ray_actor_options={"num_cpus": cluster.replica_cpus, "num_gpus": gpus},
        max_ongoing_requests=settings["max_requests"] + OTHERS,
        max_queued_requests=cluster.replica_queue,
        backpressure_config={"status_code": 503, "retry_after_s": 1},
        graceful_shutdown_wait_loop_s=DRAIN_LOOP_SECONDS,
        graceful_shutdown_timeout_s=settings["shutdown_timeout"] + STOP_TIMEOUT,
        health_check_period_s=HEALTH_SECONDS,
        health_check_timeout_s=HEALTH_TIMEOUT,
        max_constructor_retry_count=STARTS,
        request_router_config={
            "request_router_class": ROUTER,
            "request_router_kwargs": {"room": room, "longest_wait": cluster.replica_wait},
            "request_routing_stats_period_s": STATS_SECONDS,
        },
    )
    bound: Application = deployment.bind(choices)
    return bound


def http_options(choices: Choices) -> dict[str, Any]:
    """Where Ray's proxies listen, and when they give up a request whose replica does not."""
    settings = choices.settings
    longest = settings["request_timeout"] + settings.get("body_timeout", 60.0)
    return {
        "host": choices.server["host"],
        "port": choices.server["port"],
        "request_timeout_s": math.ceil(longest) + 30,
        "keep_alive_timeout_s": settings["keep_alive_timeout"],
    }
