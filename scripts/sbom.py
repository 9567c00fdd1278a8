"""Write what is installed, Python distributions and Debian packages, as CycloneDX 1.6.

    python scripts/sbom.py saccade-server > saccade.cdx.json

It lists what the interpreter that runs it can import and what the machine's dpkg knows, so it runs
inside the image that it describes. The same contents give the same bytes. Libraries that a wheel
carries inside (OpenBLAS in numpy, CUDA's in nvidia-*) are part of that wheel's component.
"""

from __future__ import annotations

import importlib.metadata as metadata
import json
import re
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

Component = dict[str, Any]

ROOT = Path("/")
LONGEST_NAME = 64
"""Characters of a license's name; some distributions put the text itself there."""


def licenses_of(found: metadata.PackageMetadata) -> list[dict[str, Any]]:
    """An SPDX expression where a distribution has one, else the names it gives."""
    if expression := found.get("License-Expression"):
        return [{"expression": expression}]
    classifiers = [text for text in found.get_all("Classifier", []) if text.startswith("License")]
    names = [text.rpartition(" :: ")[2] for text in classifiers]
    given = (found.get("License") or "").strip()
    if not names and given and len(given) <= LONGEST_NAME and "\n" not in given:
        names = [given]
    return [{"license": {"name": name}} for name in names]


def python_component(found: metadata.Distribution) -> Component:
    name = canonicalize_name(found.name)
    purl = f"pkg:pypi/{name}@{quote(found.version, safe='.')}"
    component = {"type": "library", "bom-ref": purl, "name": name, "version": found.version}
    licenses = licenses_of(found.metadata)
    return component | {"purl": purl} | ({"licenses": licenses} if licenses else {})


def needs(found: metadata.Distribution, installed: dict[str, str]) -> list[str]:
    """References of what a distribution requires here; extras are not told apart."""
    refs = set()
    for text in found.requires or ():
        need = Requirement(text)
        name = canonicalize_name(need.name)
        if name in installed and (need.marker is None or need.marker.evaluate({"extra": ""})):
            refs.add(installed[name])
    return sorted(refs)


def stanzas(status: str) -> Iterator[dict[str, str]]:
    """Fields of each installed package in dpkg's status file."""
    for text in status.split("\n\n"):
        fields = dict(re.findall(r"^([\w-]+): (.*)$", text, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            yield fields


def debian_licenses(root: Path, package: str) -> list[dict[str, Any]]:
    """Names in a package's copyright file, where it is one that machines can read."""
    file = root / "usr/share/doc" / package / "copyright"
    text = file.read_text("utf-8", "replace") if file.is_file() else ""
    names = sorted(set(re.findall(r"^License: *(\S.*?)\s*$", text, re.MULTILINE)))
    return [{"license": {"name": name}} for name in names if len(name) <= LONGEST_NAME]


def debian_component(fields: dict[str, str], root: Path, release: str) -> Component:
    name, version, architecture = fields["Package"], fields["Version"], fields["Architecture"]
    purl = (
        f"pkg:deb/debian/{quote(name, safe='')}@{quote(version, safe='.')}"
        f"?arch={architecture}&distro={release}"
    )
    component = {"type": "library", "bom-ref": purl, "name": name, "version": version}
    licenses = debian_licenses(root, name)
    return component | {"purl": purl} | ({"licenses": licenses} if licenses else {})


def release_of(root: Path) -> str:
    """Such as debian-12."""
    file = root / "etc/os-release"
    told = dict(re.findall(r'^(\w+)="?([^"\n]*)', file.read_text() if file.is_file() else "", re.M))
    return f"{told.get('ID', 'debian')}-{told.get('VERSION_ID', 'unknown')}"


def inventory(name: str, root: Path = ROOT) -> dict[str, Any]:
    """A CycloneDX document whose subject is the installed distribution ``name``.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    subject = python_component(metadata.distribution(name)) | {"type": "application"}
    # the first of a name on the path is what an import gets
    first: dict[str, metadata.Distribution] = {}
    for found in metadata.distributions():
        first.setdefault(canonicalize_name(found.name), found)
    python = {name: python_component(found) for name, found in sorted(first.items())}
    refs = {name: component["bom-ref"] for name, component in python.items()}
    graph = [{"ref": refs[name], "dependsOn": needs(first[name], refs)} for name in python]
    del python[subject["name"]]

    status = root / "var/lib/dpkg/status"
    packages = stanzas(status.read_text() if status.is_file() else "")
    debian = [debian_component(fields, root, release_of(root)) for fields in packages]
    components = [*python.values(), *sorted(debian, key=lambda one: str(one["bom-ref"]))]
    contents = json.dumps([subject, components, graph], sort_keys=True)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, contents)}",
        "version": 1,
        "metadata": {"component": subject},
        "components": components,
        "dependencies": graph,
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("sbom.py takes one name, of the distribution that is described: saccade-server")
    try:
        document = inventory(sys.argv[1])
    except metadata.PackageNotFoundError as error:
        sys.exit(f"sbom.py: {error}")
    json.dump(document, sys.stdout, indent=1)
    print()
