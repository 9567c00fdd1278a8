"""How the model runs: where, in which type, with how much memory."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

import typer

from saccade_server.options import Device, Dtype, MaxLen, Threads
from saccade_server.serve_options.group import OptionGroup


def _refuse_compilation(asked: bool) -> bool:
    if asked:
        raise typer.BadParameter(
            "there is no such option any more: layers are the server's own code, and whatever of "
            "them is compiled always is; leave it out (and SACCADE_COMPILE unset)"
        )
    return asked


@dataclass(frozen=True)
class EngineOptions(OptionGroup):
    """Device, type and limits of the engine."""

    device: Device = "auto"
    dtype: Dtype = "auto"
    max_model_len: MaxLen = None
    max_num_seqs: Annotated[
        int, typer.Option(min=1, help="Sequences in one batch.", envvar="SACCADE_MAX_NUM_SEQS")
    ] = 64
    max_batched_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens in one step; if absent 8192 on a GPU, 1024 on a CPU.",
            envvar="SACCADE_MAX_BATCHED_TOKENS",
        ),
    ] = None
    cache_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Size of the key-value cache; if absent what fits on a GPU, 65536 on a CPU.",
            envvar="SACCADE_CACHE_TOKENS",
        ),
    ] = None
    gpu_memory_utilization: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=1.0,
            help="Share of the GPU's memory for model, cache and the largest step; "
            "CUDA graphs come on top. Of no effect on a CPU.",
            envvar="SACCADE_GPU_MEMORY_UTILIZATION",
        ),
    ] = 0.9
    enforce_eager: Annotated[
        bool,
        typer.Option(
            "--enforce-eager",
            help="No CUDA graphs: starts sooner, needs less memory, decodes slower.",
            envvar="SACCADE_ENFORCE_EAGER",
        ),
    ] = False
    compile_layers: Annotated[
        bool,
        typer.Option(
            "--compile",
            hidden=True,
            callback=_refuse_compilation,
            help="Refused: there is nothing to turn on.",
            envvar="SACCADE_COMPILE",
        ),
    ] = False
    prefix_caching: Annotated[
        bool,
        typer.Option(
            help="Share the keys and values of equal prefixes.", envvar="SACCADE_PREFIX_CACHING"
        ),
    ] = True
    batch_invariant: Annotated[
        bool,
        typer.Option(
            "--batch-invariant",
            help="A request's tokens do not depend, bit for bit, on what runs beside it; slower.",
            envvar="SACCADE_BATCH_INVARIANT",
        ),
    ] = False
    threads: Threads = None

    def choices(self) -> dict[str, Any]:
        """What :func:`~saccade_server.config.engine_config` takes."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        del given["compile_layers"]
        return given
