"""The command that measures a GPU: where there is none, with what is there, and what it leaves."""

import os
import subprocess
import sys
import zipfile
from dataclasses import asdict
from importlib import resources
from pathlib import Path

import pytest
from gpu import digests, machine, marked_tests, plan, profile
from gpu.asking import png
from gpu.store import Store
from gpu.summary import summary
from tune import adopted, rendered

from saccade_kernels.gpu import tuning

SCRIPT = digests.BENCHMARKS / "gpu_bench.py"
THERE = """
torch numpy triton transformers tokenizers safetensors huggingface_hub pillow jinja2 markupsafe
regex tqdm packaging filelock fsspec click typer rich markdown_it_py mdurl pygments shellingham
pyyaml sympy mpmath networkx setuptools psutil typing_extensions hf_xet annotated_doc colorama
saccade_server saccade_client
"""
"""Packages of a machine with a GPU, of those that anything here imports; and ours."""

BARE = """
import importlib, importlib.metadata as metadata, sys
allowed = set({allowed!r})
of = metadata.packages_distributions()
class Some:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        names = {{n.lower().replace("-", "_") for n in of.get(name.split(".")[0], ())}}
        if not names or names & allowed:
            return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Some, sys.meta_path)
for module in {modules!r}:
    importlib.import_module(module)
for name in ("pytest", "matplotlib", "hypothesis"):
    assert name not in sys.modules, name
"""


def wheels():
    lines = (digests.ROOT / "scripts" / "gpu_wheels.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def environment():
    path = [str(digests.BENCHMARKS), *(str(digests.ROOT / s) for s in machine.SOURCES)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


@pytest.mark.skipif(os.environ.get("CUDA_VISIBLE_DEVICES") == "0", reason="a GPU is here")
def test_without_a_gpu_it_says_so_in_a_sentence():
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("There is no GPU here")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--parts", "stps"], "no part stps; there are tests"),
        (["--budget", "0"], "--budget is a number of seconds above 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, said):
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_all_parts_load_with_the_wheels_and_what_is_there():
    modules = sorted({part.run.partition(":")[0] for part in plan.PARTS})
    modules += ["gpu.worker", "saccade_server.cli", "saccade_server.serving"]
    allowed = {name.lower().replace("-", "_") for name in (*THERE.split(), *wheels())}
    script = BARE.format(allowed=sorted(allowed), modules=modules)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_wheels_are_unpacked_once_and_come_behind_the_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "x-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("x/__init__.py", "name = 'x'")
    site = machine.unpack(tmp_path / "wheels")
    assert (site / "x" / "__init__.py").read_text() == "name = 'x'"
    assert machine.unpack(tmp_path / "wheels") == site
    assert machine.unpack(tmp_path / "none") is None
    path = machine.environment(site)["PYTHONPATH"].split(os.pathsep)
    assert path[:4] == [str(digests.ROOT / source) for source in machine.SOURCES]
    assert path[4] == str(site)


@pytest.mark.parametrize(
    ("tags", "fits"),
    [
        ("py3-none-any", True),
        ("py2.py3-none-any", True),
        ("cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64", True),
        ("cp311-cp311-manylinux_2_17_x86_64", False),
        ("cp39-abi3-manylinux_2_26_x86_64", True),
        ("cp313-abi3-manylinux_2_26_x86_64", False),
    ],
)
def test_wheels_of_another_python_are_left_alone(
    tags, fits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.version_info", (3, 12, 3))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with zipfile.ZipFile(tmp_path / f"x-1-{tags}.whl", "w") as wheel:
        wheel.writestr("x.py", "")
    assert (machine.unpack(tmp_path) is not None) == fits


def test_a_digest_is_of_the_code_that_is_measured_and_of_the_part():
    kernels, engine = (
        next(part for part in plan.PARTS if part.name == name) for name in ("decode", "llava_steps")
    )
    files = {path.name for path in digests.closure("gpu.steps")}
    assert {"steps.py", "serving.py", "timing.py", "shapes.py", "session.py"} <= files
    assert not files & {"decode_sweep.py", "plan.py", "targets.py", "scheduler.py"}
    assert digests.digest(kernels) != digests.digest(engine)
    assert digests.digest(kernels) == digests.digest(kernels)


def test_a_profile_tells_launches_time_and_the_gaps_between_steps():
    spans = []
    for step in range(3):
        at = step * 100.0
        spans += [
            ("product", at, at + 40),
            ("norm", at + 41, at + 50),
            ("product", at + 45, at + 60),
        ]
    found = profile.described(spans, 3)
    assert found["launches"] == 3
    assert found["gap_us"] == 40
    assert found["span_ms"] == pytest.approx(260 / 3e3)
    assert found["busy_ms"] == pytest.approx((260 - 83) / 3e3)
    assert list(found["kernels"]) == ["product", "norm"]
    assert found["kernels"]["product"] == {"ms": pytest.approx(0.055), "launches": 2}


def test_how_tests_ended_is_read_from_a_report(tmp_path: Path):
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="a" name="good"/>'
        '<testcase classname="a" name="bad"><failure message="assert 1 == 2\nand more"/></testcase>'
        '<testcase classname="a" name="none"><skipped/></testcase></testsuite></testsuites>'
    )
    assert marked_tests.outcomes(report) == {
        "a.good": "passed",
        "a.bad": "failure: ['assert 1 == 2 and more']",
        "a.none": "skipped",
    }
    assert marked_tests.outcomes(tmp_path / "none.xml") == {}


def test_tests_that_need_a_gpu_are_found():
    names = {path.name for path in marked_tests.marked(digests.ROOT / "tests" / "server")}
    assert {"test_gpu.py", "test_memory.py", "test_transfer.py"} <= names


def test_a_picture_is_one():
    pil = pytest.importorskip("PIL.Image")
    import io

    assert pil.open(io.BytesIO(png(3))).convert("RGB").size == (64, 64)
    assert png(3) != png(4)


def test_the_summary_is_short_and_names_what_is_missing(tmp_path: Path):
    store = Store(tmp_path, {"kind": "nvidia-h100"}, {"commit": "", "versions": {}})
    store.records["llava_steps"] = {
        "outcome": "failed",
        "values": {"decode step over the read floor, 1x1024, llava": 1.25},
        "lines": {"seconds to /ready": "40"},
        "reason": "Traceback\n  File\nValueError: why",
    }
    lines = list(summary(store, list(plan.PARTS)))
    assert len("\n".join(lines)) < 10500  # the ends of logs that are kept have 12,000
    assert any(line.endswith("1.250 x <= 1.25 met") for line in lines)
    assert any("8x1024, llava" in line and "not measured <= 1.25" in line for line in lines)
    assert "FAILED llava_steps: ValueError: why" in lines
    assert any(line.startswith("seconds to /ready") and line.endswith(" 40") for line in lines)


def result(*entries):
    figures = {"tune": {"decode 128 plain": {"entries": list(entries)}}}
    hardware = {"kind": "nvidia-h200", "capability": 90}
    return {"hardware": hardware, "versions": {"triton": "3"}, "figures": figures}


def test_candidates_become_the_table_of_their_chip_alone():
    key = {"head_dim": 128, "grouped": False, "edited": False, "bytes": 2}
    config = {**tuning._find("decode", key), "num_warps": 8, "num_stages": 5}
    before = tuning.table()
    after = adopted(before, "h200", result({"kernel": "decode", "key": key, "config": config}))
    assert after["default"] == before["default"]
    own = {json_key(e["key"]): e for e in after["h200"]["decode"]}
    assert own[json_key(key)] == {"key": key, "config": config, "measured": True}
    assert {e["key"]["head_dim"] for e in own.values()} == {128}
    others = [e for e in own.values() if e["key"] != key and e["key"]["bytes"] == 2]
    assert others
    for entry in others:
        assert entry["config"]["num_warps"] == 8, "which decides the order of sums"
        assert entry["config"]["num_stages"] == 3
        assert entry["measured"] is False
    assert after["h200"]["prefill"] == []
    assert after["h200"]["hardware"] == "nvidia-h200"
    assert after["h200"]["otherwise"] == "sm_90"
    again = adopted(after, "h200", result({"kernel": "decode", "key": key, "config": config}))
    assert again == after


def test_small_kernels_are_adopted_one_by_one():
    key = {"kernel": "norm", "bytes": 2}
    config = {"values": 8, "most_warps": 16, "block": 0}
    entry = {"kernel": "small", "key": key, "config": config}
    after = adopted(tuning.table(), "h100", result(entry))["h100"]
    assert after["small"] == [{"key": key, "config": config, "measured": True}]
    assert after["decode"] == after["prefill"] == []


def test_products_are_adopted_shape_by_shape_and_given_back_to_the_library():
    key = {"out": 4096, "in": 4096, "rows": 8, "bytes": 2}
    config = asdict(tuning.ProductConfig(16, 16, 256, 4, 5))
    entry = {"kernel": "product", "key": key, "config": config}
    other = {**entry, "key": {**key, "rows": 16}}
    first = adopted(tuning.table(), "h200", result(entry, other))
    after = adopted(first, "h200", result({**entry, "config": None}))["h200"]
    assert [(e["key"]["rows"], e["config"]) for e in after["product"]] == [(16, config), (8, None)]
    assert {e["measured"] for e in after["product"]} == {True}


def test_what_is_adopted_is_written_as_it_is_read():
    path = resources.files("saccade_kernels.gpu") / "tuning.json"
    assert rendered(tuning.table()) == path.read_text()


def json_key(key):
    return tuple(sorted(key.items()))
