"""Files and folders that a command line names: they are there, or the nearest name is suggested."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import typer

Paths = TypeVar("Paths", Path, None, list[Path], list[Path] | None, Path | None)


def readable(paths: Paths) -> Paths:
    """What was given, if all of it are files that can be read; for typer's ``callback``.

    Raises:
        BadParameter: one is not; the message says what helps.
    """
    for path in paths if isinstance(paths, list) else [paths]:
        if path is not None and (why := why_unreadable(path)):
            raise typer.BadParameter(why)
    return paths


def why_unreadable(path: Path) -> str | None:
    """Why a file cannot be read, None if it can."""
    try:
        if path.is_dir():
            return f"{path} is a folder; name a file in it"
        if not path.exists():
            return f"there is no file {path}; {meant(path)}"
        if not path.is_file() and not _is_null(path):
            return f"{path} is a pipe or a device; write what it gives into a file, and name that"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror}); check the name and its folder's rights"
    if not os.access(path, os.R_OK):
        return f"{path} may not be read by this user; give it read permission"
    return None


def _is_null(path: Path) -> bool:
    """Whether it is the null device, an empty file that ends at once; compose.yaml mounts it."""
    return path.is_char_device() and path.stat().st_rdev == os.stat(os.devnull).st_rdev


def meant(path: Path) -> str:
    """What a path that is not there was probably meant to be."""
    from saccade_interventions.suggest import nearest

    above = path.parent
    try:
        names = [entry.name for entry in above.iterdir()]
    except OSError:
        return f"there is no folder {above} either; check the path"
    near = nearest(path.name, names)
    if near:
        return f"did you mean {' or '.join(str(above / name) for name in near)}?"
    return "check the name"


def writable(path: Path | None) -> Path | None:
    """What was given, if a file can be written there; for typer's ``callback``.

    Raises:
        BadParameter: it cannot; better now than behind hours of work.
    """
    if path is None:
        return None
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a folder; name a file in it")
    there = _first_there(path.parent)
    if not there.is_dir():
        raise typer.BadParameter(
            f"{path} cannot be written, because {there} is a file, not a folder"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise typer.BadParameter(f"{path}: this user may not write to {there}; name another folder")
    return path


def folder(path: Path | None) -> Path | None:
    """What was given, if it is a folder or can become one; for typer's ``callback``.

    Raises:
        BadParameter: a file is in its place, or on the way to it.
    """
    if path is not None and not (there := _first_there(path)).is_dir():
        where = "" if there == path else f", so {path} cannot be"
        raise typer.BadParameter(f"{there} is a file, not a folder{where}; name another folder")
    return path


def _first_there(path: Path) -> Path:
    """The path, or of the folders above it the first that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
