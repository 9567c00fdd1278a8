"""``make docker`` takes Docker where one runs, else buildah in a form that containers allow."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLAGS = ["saccade:cpu", "--build-arg", "DEVICE=cpu"]
TOLD = " ".join(FLAGS[1:])

Done = subprocess.CompletedProcess[str]


class Machine:
    """A PATH with the shell's tools and stand-ins for builders, which note how they are called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        self.calls.touch()
        for name in ("awk", "bash", "cat", "dirname", "env", "mktemp", "rm", "tail"):
            found = shutil.which(name)
            assert found
            (folder / name).symlink_to(found)

    def has(self, name: str, fails: str = "nothing") -> None:
        """Give it a builder that fails at what begins with ``fails``."""
        stand_in = self.folder / name
        stand_in.write_text(
            "#!/bin/bash\n"
            f'echo "$BUILDAH_ISOLATION {name} $*" >> {self.calls}\n'
            f'[[ "$*" != "{fails}"* ]]\n'
        )
        stand_in.chmod(0o755)

    def build(self, **variables: str) -> Done:
        return subprocess.run(
            [str(ROOT / "scripts/build_image.sh"), *FLAGS],
            env={"PATH": str(self.folder), **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    def last(self) -> str:
        return self.calls.read_text().splitlines()[-1].strip()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_docker_is_taken_where_it_runs(machine: Machine) -> None:
    machine.has("docker")
    machine.has("buildah")
    assert machine.build().returncode == 0
    assert machine.last() == f"docker build --tag saccade:cpu {TOLD} ."


def test_buildah_is_taken_where_no_docker_runs(machine: Machine) -> None:
    machine.has("docker", fails="info")
    machine.has("buildah")
    assert machine.build().returncode == 0
    assert (
        machine.last() == f"chroot buildah bud --format docker --layers --tag saccade:cpu {TOLD} ."
    )


def test_a_store_without_mounts_is_a_slow_one(machine: Machine) -> None:
    machine.has("buildah", fails="info")
    done = machine.build()
    assert done.returncode == 0
    assert "vfs" in done.stdout
    wanted = f"chroot buildah --storage-driver vfs bud --format docker --tag saccade:cpu {TOLD} ."
    assert machine.last() == wanted


def test_what_the_environment_says_of_buildah_is_kept(machine: Machine) -> None:
    machine.has("buildah", fails="info")
    done = machine.build(BUILDAH_ISOLATION="rootless", STORAGE_DRIVER="overlay")
    assert done.returncode == 0
    assert machine.last().startswith("rootless buildah --storage-driver overlay bud ")


def test_a_build_that_fails_fails(machine: Machine) -> None:
    machine.has("buildah", fails="bud")
    assert machine.build().returncode != 0


def test_neither_is_one_sentence(machine: Machine) -> None:
    done = machine.build()
    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("make docker needs a running Docker, or buildah")


def test_a_base_image_that_cannot_be_made_ends_the_build(machine: Machine) -> None:
    machine.has("buildah", fails="inspect")
    machine.has("debootstrap", fails="--variant")
    assert machine.build(BASE="debootstrap").returncode != 0
    assert "bud" not in machine.calls.read_text()
