"""The list of what an image holds: all of it, once, by names that scanners of advisories know."""

import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts/sbom.py"
STATUS = """\
Package: libstdc++6
Status: install ok installed
Architecture: amd64
Version: 12.2.0-14+deb12u1
Description: GNU Standard C++ Library v3
 of several lines

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1.0

Package: mount
Status: install ok installed
Architecture: amd64
Version: 1:2.38.1-5

Package: held
Status: hold ok installed
Architecture: all
Version: 2~rc1
"""
COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
License: GPL-2+

Files: lib/*
License: LGPL-2.1+

License: GPL-2+
 This program is free software.
"""

Document = dict[str, Any]


@pytest.fixture(scope="module")
def sbom() -> Any:
    spec = importlib.util.spec_from_file_location("sbom", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root folder of a small Debian."""
    for name, text in {
        "etc/os-release": 'PRETTY_NAME="Debian"\nID=debian\nVERSION_ID="12"\n',
        "var/lib/dpkg/status": STATUS,
        "usr/share/doc/mount/copyright": COPYRIGHT,
        "usr/share/doc/held/copyright": "Copyright (c) somebody. All rights reserved.\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def document(sbom: Any, root: Path) -> Document:
    return dict(sbom.inventory("saccade-server", root))


def purls(document: Document) -> list[str]:
    return [component["purl"] for component in document["components"]]


def test_debian_packages_that_are_installed_are_listed(document: Document) -> None:
    assert [purl for purl in purls(document) if purl.startswith("pkg:deb/")] == [
        "pkg:deb/debian/held@2~rc1?arch=all&distro=debian-12",
        "pkg:deb/debian/libstdc%2B%2B6@12.2.0-14%2Bdeb12u1?arch=amd64&distro=debian-12",
        "pkg:deb/debian/mount@1%3A2.38.1-5?arch=amd64&distro=debian-12",
    ]


def test_their_licenses_are_those_of_copyright_files(document: Document) -> None:
    found = {component["name"]: component for component in document["components"]}
    names = [entry["license"]["name"] for entry in found["mount"]["licenses"]]
    assert names == ["GPL-2+", "LGPL-2.1+"]
    assert "licenses" not in found["held"]
    assert "licenses" not in found["libstdc++6"]


def test_every_distribution_is_listed_once(document: Document) -> None:
    subject = document["metadata"]["component"]
    listed = [purl for purl in [subject["purl"], *purls(document)] if purl.startswith("pkg:pypi/")]
    names = [re.split("[/@]", purl)[1] for purl in listed]
    assert len(names) == len(set(names))
    installed = {
        re.sub(r"[-_.]+", "-", found.name).lower() for found in importlib.metadata.distributions()
    }
    assert set(names) == installed
    torch = importlib.metadata.version("torch").replace("+", "%2B")
    assert f"pkg:pypi/torch@{torch}" in listed
    assert subject["name"] == "saccade-server"
    assert subject["licenses"] == [{"expression": "Apache-2.0"}]


def test_dependencies_are_those_declared_and_here(document: Document) -> None:
    subject = document["metadata"]["component"]
    refs = [component["bom-ref"] for component in [subject, *document["components"]]]
    assert len(refs) == len(set(refs))
    graph = {entry["ref"]: entry["dependsOn"] for entry in document["dependencies"]}
    assert {ref for needs in graph.values() for ref in needs} | graph.keys() <= set(refs)
    of_ours = {ref.split("/")[1].split("@")[0] for ref in graph[subject["bom-ref"]]}
    assert {"torch", "transformers", "uvicorn"} <= of_ours
    assert "ruff" not in of_ours, "an extra is no dependency"


def test_the_same_contents_are_the_same_document(sbom: Any, root: Path, document: Document) -> None:
    assert sbom.inventory("saccade-server", root) == document
    status = root / "var/lib/dpkg/status"
    status.write_text(status.read_text().replace("2~rc1", "2"))
    assert sbom.inventory("saccade-server", root)["serialNumber"] != document["serialNumber"]


def test_the_script_writes_what_cyclonedx_asks_for() -> None:
    command = [sys.executable, str(SCRIPT), "saccade-server"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert re.fullmatch(
        r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", document["serialNumber"]
    )
    for component in document["components"]:
        assert component.keys() - {"licenses"} == {"type", "bom-ref", "name", "version", "purl"}
        for entry in component.get("licenses", ()):
            # an expression stands alone, names may be several
            assert entry.keys() == {"expression"} or entry.keys() == {"license"}
        assert len(component.get("licenses", ())) <= 1 or all(
            "license" in entry for entry in component["licenses"]
        )


def test_what_is_not_installed_is_one_sentence() -> None:
    command = [sys.executable, str(SCRIPT), "no-such-thing"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    assert "no-such-thing" in sentence
