"""``saccade calibrate``: its command line. Imports of torch and the server wait until it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from saccade_server.options import (
    Artifacts,
    Device,
    Dtype,
    MaxLen,
    Model,
    Threads,
    fail,
    log_to_stderr,
)
from saccade_server.shell.commands import Commands
from saccade_server.shell.model import check_model
from saccade_server.shell.paths import readable, writable

COEFFICIENTS = "0.25,0.5,1,1.5,2,3"
ALPHAS = "0.5,1,2,4,8,15"
"""What is tried if nobody says: of vectors, and of heads up to what the paper has."""

MOST_STRENGTH = 1000.0
MOST_LAYERS = 10_000
"""More than any model has."""

app = typer.Typer(
    name="calibrate",
    cls=Commands,
    help="Find heads, vectors or sinks on labelled prompts, and write them as an artifact.",
    short_help="Make an artifact from labelled prompts.",
)


def _entry(text: str) -> str:
    from saccade_server.shell.entries import readable_entry

    return readable_entry(text, {"heads": {"0": [0]}})


Prompts = Annotated[
    Path,
    typer.Argument(
        callback=readable, help="JSONL: prompt or messages, image or images, label; see the docs."
    ),
]
Out = Annotated[Path, typer.Option(callback=writable, help="File of the artifact.")]
Layers = Annotated[
    str | None,
    typer.Option(
        callback=lambda text: layers_of(text) and text, help="As 2,3 or 2-5; if absent the default."
    ),
]
Positive = Annotated[
    str | None, typer.Option(help="Label of the positive class, if labels do not say so.")
]
At = Annotated[
    str,
    typer.Option(
        "--site",
        callback=lambda text: _site(text),
        help="residual, attention_output or mlp_output.",
    ),
]
How = Annotated[
    str,
    typer.Option(
        "--direction", callback=lambda text: _direction(text), help="mean (of differences) or pca."
    ),
]
Tune = Annotated[
    bool,
    typer.Option(
        "--tune/--no-tune",
        help="Try the directions of one half of the prompts on the other, and write what does best "
        "there into the artifact, as its defaults.",
    ),
]
Strengths = Annotated[
    str,
    typer.Option(callback=lambda text: _strengths(text) and text, help="What to try, as 0.5,1,2."),
]
Keep = Annotated[
    Path | None,
    typer.Option(
        callback=readable,
        help="JSONL like PROMPTS, with right answers: what is right must stay right.",
    ),
]
Notes = Annotated[str, typer.Option(help="A text to keep in the artifact.")]


@app.command("act", short_help="Heads whose attention calibration raises accuracy.")
def act_command(
    prompts: Prompts,
    out: Out = Path("act.safetensors"),
    layers: Layers = None,
    margin: Annotated[
        float,
        typer.Option(min=0, help="Keep heads that raise accuracy by more than this share."),
    ] = 0.01,
    by_probability: Annotated[
        bool,
        typer.Option(
            "--by-probability",
            help="Judge by the mean log-probability of the labels' first token; the margin is in "
            "nats.",
        ),
    ] = False,
    entry: Annotated[
        str,
        typer.Option(
            callback=_entry, help="The method with fields to calibrate with, as act:beta=0.4."
        ),
    ] = "act",
    notes: Notes = "",
    artifacts: Artifacts = None,
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_model_len: MaxLen = None,
    threads: Threads = None,
) -> None:
    """Heads whose attention calibration raises accuracy; by default from layer 2 on."""

    def work() -> None:
        from saccade_server.calibration.terminal import calibrate_act

        engine = _engine(model, device, dtype, threads, max_model_len)
        chosen = layers_of(layers)
        calibrate_act(engine, prompts, out, chosen, margin, by_probability, entry, notes, artifacts)

    _run(work, model, prompts)


@app.command("heads", short_help="Heads that the right answers depend on.")
def heads_command(
    prompts: Prompts,
    out: Out = Path("heads.safetensors"),
    layers: Layers = None,
    top: Annotated[int, typer.Option(min=1, help="Heads to keep.")] = 10,
    harmful: Annotated[
        bool, typer.Option("--harmful", help="Keep those whose ablation helps the most.")
    ] = False,
    notes: Notes = "",
    artifacts: Artifacts = None,
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_model_len: MaxLen = None,
    threads: Threads = None,
) -> None:
    """Heads ranked by how much ablating each lowers the probability of the labels."""

    def work() -> None:
        from saccade_server.calibration.terminal import calibrate_heads

        engine = _engine(model, device, dtype, threads, max_model_len)
        calibrate_heads(engine, prompts, out, layers_of(layers), top, harmful, notes, artifacts)

    _run(work, model, prompts)


@app.command("vectors", short_help="Directions in the residual stream, or at another site.")
def vectors_command(
    prompts: Prompts,
    out: Out = Path("vectors.safetensors"),
    layers: Layers = None,
    site: At = "residual",
    how: How = "mean",
    positive: Positive = None,
    tune: Tune = True,
    strengths: Strengths = COEFFICIENTS,
    keep: Keep = None,
    notes: Notes = "",
    artifacts: Artifacts = None,
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Directions from negative to positive prompts; --layers are residuals, or layers of a site."""

    def work() -> None:
        from saccade_server.calibration.steering import Sources, calibrate_vectors
        from saccade_server.calibration.tuning import Tuning

        engine = _engine(model, device, dtype, threads)
        sources = Sources(
            engine,
            prompts,
            out,
            _direction(how),
            positive,
            notes,
            artifacts,
            layers=layers_of(layers),
            site=_site(site),
        )
        calibrate_vectors(sources, Tuning(_strengths(strengths), keep) if tune else None)

    _run(work, model, prompts)


@app.command("head-vectors", short_help="Directions in the outputs of single heads.")
def head_vectors_command(
    prompts: Prompts,
    out: Out = Path("head-vectors.safetensors"),
    top: Annotated[int, typer.Option(min=1, help="Heads to keep.")] = 10,
    how: How = "mean",
    positive: Positive = None,
    tune: Tune = True,
    strengths: Strengths = ALPHAS,
    keep: Keep = None,
    notes: Notes = "",
    artifacts: Artifacts = None,
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Directions in the outputs of the heads that tell positive from negative prompts best."""

    def work() -> None:
        from saccade_server.calibration.steering import Sources, calibrate_head_vectors
        from saccade_server.calibration.tuning import Tuning

        engine = _engine(model, device, dtype, threads)
        sources = Sources(
            engine, prompts, out, _direction(how), positive, notes, artifacts, top=top
        )
        calibrate_head_vectors(sources, Tuning(_strengths(strengths), keep) if tune else None)

    _run(work, model, prompts)


@app.command("head-means", short_help="Mean outputs of all heads.")
def head_means_command(
    prompts: Prompts,
    out: Out = Path("head-means.safetensors"),
    notes: Notes = "",
    artifacts: Artifacts = None,
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Mean outputs of all heads, for mean ablation; labels are not used."""

    def work() -> None:
        from saccade_server.calibration.terminal import calibrate_head_means

        engine = _engine(model, device, dtype, threads)
        calibrate_head_means(engine, prompts, out, notes, artifacts)

    _run(work, model, prompts)


@app.command("sinks", short_help="Dimensions that mark attention sinks.")
def sinks_command(
    out: Out = Path("sinks.safetensors"),
    notes: Notes = "",
    artifacts: Artifacts = None,
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    threads: Threads = None,
) -> None:
    """Residual dimensions of the massive activations that mark sinks; needs no prompts."""

    def work() -> None:
        from saccade_server.calibration.terminal import calibrate_sinks

        calibrate_sinks(_engine(model, device, dtype, threads), out, notes, artifacts)

    _run(work, model)


def _run(work: Callable[[], None], model: str | None, prompts: Path | None = None) -> None:
    """Do the work; what is wrong with the input or the model ends the command."""
    from saccade_server.calibration.examples import read_examples
    from saccade_server.evaluation.errors import EvaluationError

    log_to_stderr("warning")
    try:
        check_model(model)
        if prompts is not None:
            read_examples(prompts)  # what is wrong with a line shows before torch is imported
        work()
    except (ValueError, OSError, EvaluationError) as error:
        raise fail(error) from error


def _engine(
    model: str | None,
    device: str,
    dtype: str,
    threads: int | None,
    max_model_len: int | None = None,
) -> Any:
    from saccade_server.config import engine_config

    return engine_config(
        model, device=device, dtype=dtype, threads=threads, max_model_len=max_model_len
    )


def layers_of(text: str | None) -> list[int] | None:
    """Numbers and ranges: 2,3 or 2-5."""
    if text is None:
        return None
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            numbers = range(int(first), int(last if dash else first) + 1)
        except ValueError:
            numbers = range(0)
        if not numbers or numbers.stop > MOST_LAYERS:
            raise typer.BadParameter(f"{part!r} is no layer and no range of layers")
        found.update(numbers)
    return sorted(found)


def _strengths(text: str) -> tuple[float, ...]:
    """Numbers that a strength may be, each once."""
    try:
        found = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of numbers like 0.5,1,2") from None
    if not all(0 < abs(value) <= MOST_STRENGTH for value in found):
        raise typer.BadParameter(f"a strength lies within {MOST_STRENGTH:g} and is not 0")
    return found


def _site(text: str) -> Any:
    from saccade_interventions.vectors import SITES

    if text not in SITES:
        raise typer.BadParameter(f"there is no site {text!r}; choose one of {', '.join(SITES)}")
    return text


def _direction(text: str) -> Any:
    if text not in ("mean", "pca"):
        raise typer.BadParameter(f"there is no direction {text!r}; choose mean or pca")
    return text
