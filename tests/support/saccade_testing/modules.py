"""A file that is in no package, imported for one test."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest


def import_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that the file makes under its own name, until the test ends.

    A module of that name which is imported already is back then.
    """
    name = path.stem
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.setitem(sys.modules, name, ModuleType(name))  # what was there is noted
    del sys.modules[name]
    return importlib.import_module(name)
