"""``saccade serve``: its command line. Imports of torch and the server wait until it runs."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from saccade_server.exit_codes import ExitCode
from saccade_server.http_options import (
    AllowedHosts,
    AllowedMediaDomains,
    BodyMemory,
    CorsOrigins,
    HeaderTimeout,
    ImageWorkers,
    KeepAliveTimeout,
    MaxConnections,
    MaxRequests,
    MaxTraceBytes,
    PixelsInFlight,
    RequestTimeout,
    TraceDisk,
    TraceMemory,
    Traces,
    listed,
)
from saccade_server.options import (
    Artifacts,
    Device,
    Dtype,
    LogLevel,
    MaxLen,
    Threads,
    fail,
    log_to_stderr,
)
from saccade_server.shell.model import check_model, chosen_model
from saccade_server.shell.paths import readable
from saccade_server.signals import heeded


def _refuse_compilation(asked: bool) -> bool:
    if asked:
        raise typer.BadParameter(
            "there is no such option any more: layers are the server's own code, and whatever of "
            "them is compiled always is; leave it out (and SACCADE_COMPILE unset)"
        )
    return asked


class OnHang(StrEnum):
    """What to do about an engine that hangs."""

    REPORT = "report"
    EXIT = "exit"


def serve_command(
    ctx: typer.Context,
    folder_or_name: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="Folder or hub name; the embedded demo model if absent.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The same as MODEL.", envvar="SACCADE_MODEL"),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            help="Address, or name, to listen on; 0.0.0.0 is every one of this machine.",
            envvar="SACCADE_HOST",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port to listen on.", envvar="SACCADE_PORT")
    ] = 8000,
    served_model_name: Annotated[
        str | None,
        typer.Option(help="Public name of the model.", envvar="SACCADE_SERVED_MODEL_NAME"),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="Key that clients must send; repeat for several. "
            "SACCADE_API_KEY holds one, or several with commas between.",
        ),
    ] = None,
    admin_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="Key that opens the upload of artifacts; repeat for several. Without one nobody "
            "may upload. SACCADE_ADMIN_KEY holds one, or several with commas between.",
        ),
    ] = None,
    artifacts: Artifacts = None,
    traces: Traces = None,
    profiles: Annotated[
        Path | None,
        typer.Option(
            callback=readable,
            help="TOML file of named bundles of interventions.",
            envvar="SACCADE_PROFILES",
        ),
    ] = None,
    self_test: Annotated[
        bool,
        typer.Option(
            help="Try every method on the model first, and offer those that show.",
            envvar="SACCADE_SELF_TEST",
        ),
    ] = True,
    self_test_timeout: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds for the self-test; methods that it has not come to by then are offered "
            "untested, and the log names them. If absent 120 on a GPU, 30 on a CPU.",
            envvar="SACCADE_SELF_TEST_TIMEOUT",
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_model_len: MaxLen = None,
    max_num_seqs: Annotated[
        int, typer.Option(min=1, help="Sequences in one batch.", envvar="SACCADE_MAX_NUM_SEQS")
    ] = 64,
    max_batched_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens in one step; if absent 8192 on a GPU, 1024 on a CPU.",
            envvar="SACCADE_MAX_BATCHED_TOKENS",
        ),
    ] = None,
    cache_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Size of the key-value cache; if absent what fits on a GPU, 65536 on a CPU.",
            envvar="SACCADE_CACHE_TOKENS",
        ),
    ] = None,
    gpu_memory_utilization: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=1.0,
            help="Share of the GPU's memory for model, cache and the largest step; "
            "CUDA graphs come on top. Of no effect on a CPU.",
            envvar="SACCADE_GPU_MEMORY_UTILIZATION",
        ),
    ] = 0.9,
    enforce_eager: Annotated[
        bool,
        typer.Option(
            "--enforce-eager",
            help="No CUDA graphs: starts sooner, needs less memory, decodes slower.",
            envvar="SACCADE_ENFORCE_EAGER",
        ),
    ] = False,
    compile_layers: Annotated[
        bool,
        typer.Option(
            "--compile",
            hidden=True,
            callback=_refuse_compilation,
            help="Refused: there is nothing to turn on.",
            envvar="SACCADE_COMPILE",
        ),
    ] = False,
    prefix_caching: Annotated[
        bool,
        typer.Option(
            help="Share the keys and values of equal prefixes.", envvar="SACCADE_PREFIX_CACHING"
        ),
    ] = True,
    threads: Threads = None,
    allow_image_urls: Annotated[
        bool,
        typer.Option(help="Fetch images from http(s) URLs.", envvar="SACCADE_ALLOW_IMAGE_URLS"),
    ] = False,
    allowed_media_domain: AllowedMediaDomains = None,
    allowed_host: AllowedHosts = None,
    cors_origin: CorsOrigins = None,
    max_connections: MaxConnections = 1024,
    max_requests: MaxRequests = 512,
    body_memory: BodyMemory = 512,
    header_timeout: HeaderTimeout = 20.0,
    keep_alive_timeout: KeepAliveTimeout = 5,
    image_workers: ImageWorkers = 2,
    max_pixels_in_flight: PixelsInFlight = 200_000_000,
    max_trace_bytes: MaxTraceBytes = 64 * 2**20,
    trace_memory: TraceMemory = 512,
    trace_disk: TraceDisk = 1024,
    request_timeout: RequestTimeout = 600.0,
    shutdown_timeout: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds that requests in flight have to finish once the server is told to stop.",
            envvar="SACCADE_SHUTDOWN_TIMEOUT",
        ),
    ] = 30.0,
    silence_timeout: Annotated[
        float,
        typer.Option(
            min=1,
            help="Seconds without a sign of life from the engine's process after which /ready says "
            "no; after twice as long /live does.",
            envvar="SACCADE_SILENCE_TIMEOUT",
        ),
    ] = 20.0,
    step_timeout: Annotated[
        float,
        typer.Option(
            min=1,
            help="The same for an engine that lives: seconds with work and without the end of a "
            "step.",
            envvar="SACCADE_STEP_TIMEOUT",
        ),
    ] = 180.0,
    on_hang: Annotated[
        OnHang,
        typer.Option(
            help="What follows when /live says no: report leaves it to who reads probes, exit ends "
            "the server with code 4.",
            envvar="SACCADE_ON_HANG",
        ),
    ] = OnHang.REPORT,
    log_level: LogLevel = "info",
    access_log: Annotated[
        bool, typer.Option(help="Log a line per request.", envvar="SACCADE_ACCESS_LOG")
    ] = True,
) -> None:
    """Serve the OpenAI-compatible API."""
    # The imports below take seconds, and a container's first process ignores by default.
    _answer_signals(_leave)
    log_to_stderr(log_level)
    model = chosen_model(ctx, folder_or_name, model)
    from saccade_server.api.images.fetch import check_domains
    from saccade_server.api.layers.cors import check_origins
    from saccade_server.api.layers.hosts import check_patterns, given_name
    from saccade_server.api.settings import MIB, ApiSettings

    try:
        check_model(model)
        keys = _keys(api_key, "SACCADE_API_KEY")
        admin_keys = _keys(admin_key, "SACCADE_ADMIN_KEY")
        _check(host, port, artifacts, traces, profiles)
        names = [*listed(allowed_host, "SACCADE_ALLOWED_HOST"), *given_name(host)]
        allowed_hosts = check_patterns(names)
        origins = check_origins(listed(cors_origin, "SACCADE_CORS_ORIGIN"))
        domains = check_domains(listed(allowed_media_domain, "SACCADE_ALLOWED_MEDIA_DOMAIN"))
    except (ValueError, OSError) as error:
        raise fail(error) from error
    from saccade_server.config import ServerConfig, engine_config, served_name
    from saccade_server.loading import ModelLoadError
    from saccade_server.serving import serve

    try:
        config = ServerConfig(
            host=host,
            port=port,
            engine=engine_config(
                model,
                device=device,
                dtype=dtype,
                max_model_len=max_model_len,
                max_num_seqs=max_num_seqs,
                max_batched_tokens=max_batched_tokens,
                cache_tokens=cache_tokens,
                gpu_memory_utilization=gpu_memory_utilization,
                enforce_eager=enforce_eager,
                prefix_caching=prefix_caching,
                threads=threads,
            ),
            api=ApiSettings(
                served_model_name=served_name(model, served_model_name),
                api_keys=keys,
                admin_keys=admin_keys,
                allowed_hosts=allowed_hosts,
                cors_origins=origins,
                max_connections=max_connections,
                max_requests=max_requests,
                max_bodies_bytes=body_memory * MIB,
                header_timeout=header_timeout,
                keep_alive_timeout=keep_alive_timeout,
                artifacts=artifacts,
                traces=traces,
                max_trace_bytes=max_trace_bytes,
                max_traces_bytes=trace_memory * MIB,
                max_stored_traces_bytes=trace_disk * MIB,
                allow_image_urls=allow_image_urls,
                allowed_media_domains=domains,
                image_workers=image_workers,
                max_pixels_in_flight=max_pixels_in_flight,
                request_timeout=request_timeout,
                shutdown_timeout=shutdown_timeout,
                silence_timeout=silence_timeout,
                step_timeout=step_timeout,
                access_log=access_log,
            ),
            profiles=profiles,
            self_test=self_test,
            self_test_seconds=self_test_timeout,
            exit_on_hang=on_hang is OnHang.EXIT,
        )
        code = asyncio.run(serve(config))
    except ModelLoadError as error:
        raise fail(error, ExitCode.MODEL) from error
    except (ValueError, OSError) as error:
        raise fail(error) from error
    # With its loop went the loop's handlers; one signal more must not change the exit code.
    _answer_signals(signal.SIG_IGN)
    raise typer.Exit(code)


def _check(
    host: str, port: int, artifacts: Path | None, traces: Path | None, profiles: Path | None
) -> None:
    """Refuse what can be refused before torch is imported, which takes seconds.

    Raises:
        ListenError: the address cannot be had.
        OSError: the folder of artifacts or traces cannot be used.
        PluginError: an installed package offers a method that cannot run.
        ProfileError: the file of profiles is not usable.
    """
    from saccade_interventions.registry import Registry
    from saccade_server.api.artifact_store import ArtifactStore
    from saccade_server.api.traces.store import TraceStore
    from saccade_server.listening import release, take
    from saccade_server.requests.profiles import load_profiles

    registry = Registry.discover()
    if profiles is not None:
        load_profiles(profiles, registry)
    if artifacts is not None:
        ArtifactStore(artifacts, 0).close()
    if traces is not None:
        TraceStore(traces, 0).close()
    release(take(host, port))


def _answer_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in heeded():
        signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def _keys(options: list[str] | None, variable: str) -> tuple[str, ...]:
    """Keys of the options, or else of the environment."""
    keys = listed(options, variable)
    if any(not key or key.split() != [key] for key in keys):
        raise typer.BadParameter("a key must not be empty or hold blanks")
    return keys
