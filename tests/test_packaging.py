"""The two distributions hold what they should, and the four source roots stay source roots."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from datetime import date
from email import message_from_string
from email.message import Message
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import saccade_client
import saccade_server

ROOT = Path(__file__).parents[1]
CLIENT = ROOT / "clients/python"
SOURCE_ROOTS = [ROOT / "kernels", ROOT / "interventions", ROOT / "server", CLIENT]
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())
DEMO = ROOT / "server/saccade_server/demo"
PLAYGROUND = ROOT / "server/saccade_server/api/playground"


def packages(source_root: Path) -> list[str]:
    """Every folder below a source root that holds Python, as an import name."""
    folders = {path.parent for path in source_root.glob("saccade_*/**/*.py")}
    return sorted(".".join(folder.relative_to(source_root).parts) for folder in folders)


def build_wheel(source: Path, folder: Path) -> Path:
    """Build in a copy: setuptools leaves build folders beside the sources."""
    copy = folder / "source"
    ignore = shutil.ignore_patterns(
        ".*", "__pycache__", "*.egg-info", "build", "tests", "benchmarks"
    )
    shutil.copytree(source, copy, ignore=ignore)
    build = "from setuptools import build_meta; build_meta.build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return message_from_string(wheel.read(name).decode())


@pytest.fixture(scope="module")
def server_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(ROOT, tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def client_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(CLIENT, tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="module")
def server_wheel(server_file: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(server_file)


@pytest.fixture(scope="module")
def client_wheel(client_file: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(client_file)


def run(*command: str | Path, folder: Path) -> str:
    """Standard output of a command that sees neither the repository nor this environment."""
    told = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def needed(requirements: list[str]) -> set[Distribution]:
    """The installed distributions that these bring along, without anybody's extras."""
    found: dict[str, Distribution] = {}
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        need = waiting.pop()
        if need.name in found or (need.marker and not need.marker.evaluate({"extra": ""})):
            continue
        found[need.name] = distribution(need.name)
        waiting += [Requirement(text) for text in found[need.name].requires or ()]
    return set(found.values())


def install(wheel: Path, folder: Path) -> Path:
    """An environment with a wheel and what it declares to need, and nothing else; its Python.

    What it needs is linked, not installed: no test waits for PyTorch to be copied.
    """
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
    run(*pip, "--no-index", "--no-deps", wheel, folder=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    needs = metadata(zipfile.ZipFile(wheel)).get_all("Requires-Dist", [])
    for found in needed(needs):
        for name in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            link = site / name
            if not link.exists():
                link.symlink_to(Path(str(found.locate_file(name))))
    return python


def test_the_packages_listed_are_those_on_disk() -> None:
    on_disk = [name for root in SOURCE_ROOTS[:3] for name in packages(root)]
    assert sorted(on_disk) == SETUP["tool"]["setuptools"]["packages"]
    assert packages(CLIENT) == ["saccade_client"]


@pytest.mark.parametrize("root", [*SOURCE_ROOTS, ROOT / "clients"], ids=lambda root: root.name)
def test_a_source_root_is_not_a_package(root: Path) -> None:
    assert not (root / "__init__.py").exists()


@pytest.mark.parametrize("root", SOURCE_ROOTS, ids=lambda root: root.name)
def test_every_package_is_typed(root: Path) -> None:
    (package,) = root.glob("saccade_*/__init__.py")
    assert (package.parent / "py.typed").exists()


def test_one_version(server_wheel: zipfile.ZipFile, client_wheel: zipfile.ZipFile) -> None:
    named = {
        (metadata(wheel)["Name"], metadata(wheel)["Version"])
        for wheel in (server_wheel, client_wheel)
    }
    version = saccade_server.__version__
    assert named == {("saccade-server", version), ("saccade-client", version)}
    assert version == saccade_client.__version__


def test_the_changelog_knows_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    first, *releases = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert first == "[Unreleased]"
    parsed = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", line) for line in releases]
    assert all(parsed)
    versions = [match[1] for match in parsed if match]
    assert versions[0] == saccade_server.__version__
    assert versions == sorted(versions, key=lambda v: [int(n) for n in v.split(".")], reverse=True)
    dates = [date.fromisoformat(match[2]) for match in parsed if match]
    assert dates == sorted(dates, reverse=True)
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.slow
@pytest.mark.timeout(300)  # a model answers, on whatever machine
def test_the_server_runs_from_its_wheel(server_file: Path, tmp_path: Path) -> None:
    python = install(server_file, tmp_path / "environment")
    command = python.with_name("saccade")
    outside = tmp_path / "outside"
    outside.mkdir()
    where = run(python, "-c", "import saccade_server as s; print(s.__file__)", folder=outside)
    assert Path(where).is_relative_to(tmp_path / "environment")
    assert run(command, "--version", folder=outside) == f"saccade {saccade_server.__version__}\n"
    assert "var" in run(command, "demo", folder=outside)


def test_the_client_runs_from_its_wheel_without_the_server(
    client_file: Path, tmp_path: Path
) -> None:
    python = install(client_file, tmp_path / "environment")
    script = """if True:
        import importlib.util, saccade_client
        for absent in ("saccade_server", "saccade_kernels", "torch", "numpy", "PIL"):
            assert importlib.util.find_spec(absent) is None, absent
        with saccade_client.Saccade() as client:
            print(saccade_client.__version__, client)
    """
    assert run(python, "-c", script, folder=tmp_path).startswith(saccade_client.__version__)


def test_no_text_installs_the_name_of_another_project() -> None:
    """The distribution `saccade` on PyPI is not this one."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/**/README.md")]
    for page in pages:
        assert not re.search(
            r"\b(install|add) (-\S+ )*[\"']?saccade(?![-_\w])", page.read_text()
        ), page


def test_the_wheel_holds_every_module_the_demo_and_the_page(server_wheel: zipfile.ZipFile) -> None:
    names = set(server_wheel.namelist())
    sources = {
        path.relative_to(root).as_posix()
        for root in SOURCE_ROOTS[:3]
        for path in root.glob("saccade_*/**/*.py")
    }
    files = [*DEMO.glob("*.json"), *DEMO.glob("model/**/*"), *DEMO.glob("samples/**/*")]
    files += [*PLAYGROUND.glob("*.html"), *PLAYGROUND.glob("static/**/*")]
    data = {path.relative_to(ROOT / "server").as_posix() for path in files if path.is_file()}
    assert sources | data <= names
    assert not [name for name in names if name.startswith(("tests", "saccade_client", "kernels"))]


def test_the_server_offers_its_command(server_wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in server_wheel.namelist() if name.endswith("entry_points.txt")]
    assert "saccade = saccade_server.cli:main" in server_wheel.read(name).decode()


def test_the_client_needs_neither_torch_nor_the_server(client_wheel: zipfile.ZipFile) -> None:
    needs = metadata(client_wheel).get_all("Requires-Dist", [])
    required = sorted(need.split(">")[0] for need in needs if "extra ==" not in need)
    assert required == ["httpx2", "pydantic"]


def test_both_wheels_carry_the_licence(
    server_wheel: zipfile.ZipFile, client_wheel: zipfile.ZipFile
) -> None:
    for wheel in (server_wheel, client_wheel):
        assert metadata(wheel)["License-Expression"] == "Apache-2.0"
        assert [name for name in wheel.namelist() if name.endswith("licenses/LICENSE")]


def test_every_dependency_is_constrained() -> None:
    """An unpinned dependency makes tomorrow's installation another one than today's."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {line.split("==")[0].lower() for line in lines if "==" in line and line[0] != "#"}
    client = tomllib.loads((CLIENT / "pyproject.toml").read_text())["project"]
    wanted = [*SETUP["project"]["dependencies"], *client["dependencies"]]
    for extras in (SETUP["project"]["optional-dependencies"], client["optional-dependencies"]):
        wanted += [need for extra in extras.values() for need in extra]
    assert {Requirement(need).name for need in wanted} - {SETUP["project"]["name"]} <= pins
