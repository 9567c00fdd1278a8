"""``--intervention``: read and checked before a model loads, and how refusals name it.

The server refuses with a path into the request's JSON, which nobody in a shell has written. Here
the path becomes the option, and the file where the option names one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from saccade_interventions import shorthand
from saccade_interventions.artifacts import ArtifactError, read_artifact
from saccade_interventions.base import Intervention
from saccade_interventions.errors import InterventionError
from saccade_interventions.registry import Registry

OPTION = "--intervention"
ENTRY = re.compile(r"interventions\[(\d+)\](?:\.([a-z_0-9]+))?")
IMAGE = re.compile(r"messages\[0\]\.content\[(\d+)\]")
DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
NO_LIST = " must be a list; got "


class Refused(ValueError):
    """A command line that cannot be done; the message speaks of its options and files."""


def read_entries(
    texts: Sequence[str], images: Sequence[Path] = (), artifacts: Path | None = None
) -> list[dict[str, Any]]:
    """The entries that ``--intervention`` options stand for.

    Args:
        images: the images that the prompt will have.
        artifacts: the folder that entries may name artifacts of.

    Raises:
        Refused: one is not written as it should be, or needs what is not there.
    """
    try:
        entries = [shorthand.parse(text) for text in texts]
    except ValueError as error:
        raise Refused(f"{OPTION}: {error}") from None
    try:
        items = Registry.discover().parse(entries)
    except InterventionError as error:
        said = in_options(error.message, error.param, entries)
        bar = "; a list of one has a bar behind it, as layers=2|" if NO_LIST in said else ""
        raise Refused(said + bar) from None
    for item, entry in zip(items, entries, strict=True):
        name = f"{OPTION} {item.method_id()}"
        _check_images(item, images, name)
        for value in entry.values():
            if isinstance(value, str) and (named := DIGEST.fullmatch(value)):
                check_artifact(named[1], artifacts, name)
    return entries


def readable_entry(text: str, filled_in: Mapping[str, Any]) -> str:
    """What was given, if it is an entry with the fields that the command fills in; for typer.

    Raises:
        BadParameter: it is not; the message says what is wrong.
    """
    try:
        entry = {**shorthand.parse(text), **filled_in}
        Registry.discover().parse([entry])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    except InterventionError as error:
        raise typer.BadParameter(_in_names(error.message, [entry])) from None
    return text


def check_artifact(digest: str, folder: Path | None, name: str) -> None:
    """Refuse an artifact that is not in the folder, or is none. ``digest``: 64 digits.

    Raises:
        Refused: with what helps.
    """
    if folder is None:
        raise Refused(f"{name}: name the folder that holds the artifact with --artifacts")
    path = folder / f"{digest}.safetensors"
    try:
        read_artifact(path.read_bytes())
    except FileNotFoundError:
        has = "there is no such folder" if not folder.is_dir() else f"it has no {path.name}"
        raise Refused(
            f"{name}: --artifacts {folder}: {has}; saccade calibrate puts what it finds into the "
            "folder that its own --artifacts names"
        ) from None
    except ArtifactError as error:
        raise Refused(f"{name}: {path}: {error}") from None


def in_options(
    message: str,
    param: str | None,
    entries: Sequence[Mapping[str, Any]],
    images: Sequence[Path] = (),
) -> str:
    """A refusal in terms of the command line that asked.

    Args:
        message: the server's.
        param: the JSON path that came with it.
        entries: of the request, in order.
        images: in order; they come before the prompt.
    """
    message = _in_names(message, entries)
    place = param or ""
    if found := ENTRY.match(place):
        name = f"{OPTION} {_method(entries, int(found[1]))}"
        field = found[2]
        silent = field and field != "method" and not re.search(rf"\b{field}\b", message)
        return f"{name}: {field}: {message}" if silent else f"{name}: {message}"
    if place.startswith("interventions"):
        return f"{OPTION}: {message}"
    if (found := IMAGE.match(place)) and int(found[1]) < len(images):
        return f"--image {images[int(found[1])]}: {message}"
    if place.startswith("messages"):
        return f"--prompt: {message}"
    option = f"--{place.replace('_', '-')}"
    if place.isidentifier():
        return f"{option}: {message.removeprefix(place + ' ')}" if place else message
    return message


def _in_names(message: str, entries: Sequence[Mapping[str, Any]]) -> str:
    """The message with names of methods where it has paths to their entries."""
    message = ENTRY.sub(lambda found: _method(entries, int(found[1])), message)
    return re.sub(r"\b(\w+) \(\1\)", r"\1", message)  # var (interventions[0]), the name twice


def _method(entries: Sequence[Mapping[str, Any]], index: int) -> str:
    return str(entries[index].get("method")) if index < len(entries) else "?"


def _check_images(item: Intervention, images: Sequence[Path], name: str) -> None:
    wanted = item.needs().images
    if wanted > len(images):
        what = "an image" if wanted == 1 else f"{wanted} images"
        raise Refused(f"{name} needs {what}; give {what} with --image FILE")
