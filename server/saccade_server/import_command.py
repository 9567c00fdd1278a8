"""``saccade import``: its command line. Imports of what reads and loads wait until it runs."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saccade_server.calibration.commands import layers_of
from saccade_server.options import Dtype, Model, fail, log_to_stderr
from saccade_server.shell.model import check_model
from saccade_server.shell.paths import folder, readable, writable

if TYPE_CHECKING:
    from rich.console import Console

    from saccade_server.importing import Converted, Found

MOST_COEFFICIENT = 1000.0


def import_command(
    file: Annotated[
        Path,
        typer.Argument(
            callback=readable,
            help="Vectors of repeng, EasySteer or llama.cpp: GGUF, .pt or safetensors.",
        ),
    ],
    layers: Annotated[
        str | None,
        typer.Option(
            callback=lambda text: layers_of(text) and text,
            help="Layers whose outputs the vectors are added to, counted from 0 as these programs "
            "do, as 2,3 or 2-5: which of the file's to take, or, of a file that names none, where "
            "its vector belongs.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(callback=writable, help="File of the artifact; if absent FILE.safetensors."),
    ] = None,
    artifacts: Annotated[
        Path | None,
        typer.Option(
            callback=folder,
            help="Folder of artifacts that servers read, to put it into.",
            envvar="SACCADE_ARTIFACTS",
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="A server: the vectors are for its model, and the artifact goes there."),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="For --url.", envvar="SACCADE_API_KEY")
    ] = None,
    admin_key: Annotated[
        str | None,
        typer.Option(help="For --url, to upload with.", envvar="SACCADE_ADMIN_KEY"),
    ] = None,
    coefficient: Annotated[
        float | None,
        typer.Option(
            min=-MOST_COEFFICIENT,
            max=MOST_COEFFICIENT,
            help="Of requests that name none; repeng's coeff, EasySteer's scale. If absent 1.",
        ),
    ] = None,
    notes: Annotated[
        str | None, typer.Option(help="A text to keep in the artifact; if absent the file's name.")
    ] = None,
    model: Model = None,
    dtype: Dtype = "auto",
) -> None:
    """Make an artifact of steering vectors that another program found.

    Nothing in the file is run: not even a .pt file is unpickled.
    """
    from rich.console import Console

    from saccade_server.importing import Target, check_size, converted, read_vectors
    from saccade_server.importing.targets import Remote, target_of

    log_to_stderr("warning")
    try:
        if url is None:
            check_model(model)
        elif model is not None:
            raise typer.BadParameter("--url and --model are two models; name one of them")
        if coefficient == 0:
            raise typer.BadParameter("--coefficient 0 changes nothing")
        check_size(file.stat().st_size)
        found = read_vectors(file.read_bytes(), layers_of(layers))

        def made(target: Target) -> Converted:
            return converted(found, target, coefficient, file.name if notes is None else notes)

        if url is None:
            artifact = made(target_of(model, dtype))
        else:
            with closing(Remote(url, api_key, admin_key)) as server:
                artifact = made(server.target())
                server.upload(artifact)
        where = _kept(artifact, file, out, artifacts, is_uploaded=url is not None)
    except (ValueError, OSError) as error:
        raise fail(error) from error
    _show(Console(highlight=False), found, artifact, [*where, *([url] if url else [])])


def _kept(
    made: Converted, file: Path, out: Path | None, artifacts: Path | None, *, is_uploaded: bool
) -> list[str]:
    """Write the artifact where it was asked for. Returns the places."""
    from saccade_interventions.artifacts import read_artifact
    from saccade_server.api.artifact_store import ArtifactStore
    from saccade_server.calibration.output import STORE_BYTES, replace_file

    places = []
    if artifacts is not None:
        ArtifactStore(artifacts, STORE_BYTES).put(read_artifact(made.data), made.data)
        places.append(f"the folder {artifacts}")
    if out is None and artifacts is None and not is_uploaded:
        out = Path(file.with_suffix(".safetensors").name)
        if out.resolve() == file.resolve():
            out = Path(f"{file.stem}.artifact.safetensors")
    if out is not None:
        replace_file(out, made.data)
        places.append(str(out))
    return places


def _show(console: Console, found: Found, made: Converted, places: list[str]) -> None:
    """What was read, what became of each layer, and a request that does what the file is for."""
    of = f", made for a model of type {found.model_type}" if found.model_type else ""
    console.print(f"{found.origin}: vectors of {len(made.lines)} layers{of}", markup=False)
    for layer, residual, length in made.lines:
        console.print(f"  output of layer {layer}: residual {residual}, length {length:.4g}")
    console.print(f"artifact: {made.digest}", soft_wrap=True)
    console.print(f"It is in {' and in '.join(places)}.", soft_wrap=True, markup=False)
    console.print(
        "A request that does what repeng does with a coefficient of 1 "
        "(of a normalised control also keep_norm):",
        soft_wrap=True,
    )
    entry: dict[str, Any] = {"method": "steering", "artifact": made.digest}
    console.print_json(data=entry | {"coefficient": 1.0, "rows": "prompt+generated"})
