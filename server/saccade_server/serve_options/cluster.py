"""How many replicas a Ray cluster runs, and how requests wait for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from saccade_server.serve_options.group import OptionGroup


@dataclass(frozen=True)
class ClusterOptions(OptionGroup):
    """Replicas, what each gets, and the cluster."""

    replicas: Annotated[
        int,
        typer.Option(
            min=1, help="Replicas, or the fewest of them.", envvar="SACCADE_CLUSTER_REPLICAS"
        ),
    ] = 1
    max_replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The most replicas: as many run as requests in flight ask for. If absent their "
            "number does not change.",
            envvar="SACCADE_CLUSTER_MAX_REPLICAS",
        ),
    ] = None
    target_requests: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --max-replicas, requests in flight that a replica should have; if absent "
            "--max-num-seqs, what it computes at once.",
            envvar="SACCADE_CLUSTER_TARGET_REQUESTS",
        ),
    ] = None
    upscale_delay: Annotated[
        float,
        typer.Option(
            min=0,
            help="With --max-replicas, seconds that replicas have more before one is added.",
            envvar="SACCADE_CLUSTER_UPSCALE_DELAY",
        ),
    ] = 30.0
    downscale_delay: Annotated[
        float,
        typer.Option(
            min=0,
            help="With --max-replicas, seconds that they have fewer before one is taken away.",
            envvar="SACCADE_CLUSTER_DOWNSCALE_DELAY",
        ),
    ] = 600.0
    replica_cpus: Annotated[
        float,
        typer.Option(
            min=0,
            help="Processors that Ray sets aside for each replica.",
            envvar="SACCADE_CLUSTER_REPLICA_CPUS",
        ),
    ] = 1.0
    replica_wait: Annotated[
        float,
        typer.Option(
            min=0.1,
            help="Seconds that a request may wait for a replica with room; then it gets a 503.",
            envvar="SACCADE_CLUSTER_REPLICA_WAIT",
        ),
    ] = 30.0
    replica_queue: Annotated[
        int,
        typer.Option(
            min=1,
            help="Requests that may wait so in each of Ray's proxies; more get a 503 at once.",
            envvar="SACCADE_CLUSTER_REPLICA_QUEUE",
        ),
    ] = 256
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="The Ray cluster to use, HOST:PORT of its head, or auto for the one that this "
            "machine is part of; if absent one is started here, which ends with the command.",
            envvar="SACCADE_CLUSTER_RAY_ADDRESS",
        ),
    ] = None

    def check(self) -> None:
        """Refuse numbers that contradict each other.

        Raises:
            ValueError: they do.
        """
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"--max-replicas {self.max_replicas} is less than --replicas {self.replicas}"
            )
        if self.target_requests is not None and self.max_replicas is None:
            raise ValueError("--target-requests says when replicas are added: give --max-replicas")

    @property
    def most(self) -> int:
        """Replicas that there may be at once."""
        return self.max_replicas or self.replicas
