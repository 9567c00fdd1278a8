"""The two distributions hold what they should, and the four source roots stay source roots."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

import saccade_client
import saccade_server

ROOT = Path(__file__).parents[1]
CLIENT = ROOT / "clients/python"
SOURCE_ROOTS = [ROOT / "kernels", ROOT / "interventions", ROOT / "server", CLIENT]
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())
DEMO = ROOT / "server/saccade_server/demo"


def packages(source_root: Path) -> list[str]:
    """Every folder below a source root that holds Python, as an import name."""
    folders = {path.parent for path in source_root.glob("saccade_*/**/*.py")}
    return sorted(".".join(folder.relative_to(source_root).parts) for folder in folders)


def build_wheel(source: Path, folder: Path) -> zipfile.ZipFile:
    """Build in a copy: setuptools leaves build folders beside the sources."""
    copy = folder / "source"
    ignore = shutil.ignore_patterns(
        ".*", "__pycache__", "*.egg-info", "build", "tests", "benchmarks"
    )
    shutil.copytree(source, copy, ignore=ignore)
    build = "from setuptools import build_meta; build_meta.build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel)


def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return message_from_string(wheel.read(name).decode())


@pytest.fixture(scope="module")
def server_wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return build_wheel(ROOT, tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def client_wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return build_wheel(CLIENT, tmp_path_factory.mktemp("client"))


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
    versions = {metadata(server_wheel)["Version"], metadata(client_wheel)["Version"]}
    assert versions == {saccade_server.__version__} == {saccade_client.__version__}


def test_the_wheel_holds_every_module_and_the_demo(server_wheel: zipfile.ZipFile) -> None:
    names = set(server_wheel.namelist())
    sources = {
        path.relative_to(root).as_posix()
        for root in SOURCE_ROOTS[:3]
        for path in root.glob("saccade_*/**/*.py")
    }
    files = [*DEMO.glob("*.json"), *DEMO.glob("model/**/*"), *DEMO.glob("samples/**/*")]
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
    assert {need.split(">")[0] for need in wanted} <= pins
