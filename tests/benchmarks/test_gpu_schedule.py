"""Parts of the GPU's measurement: their order, their time, and what becomes of those that fail."""

import json
import os
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from gpu import digests, plan
from gpu.processes import Outcome, Process
from gpu.scheduler import RESERVE, Scheduler
from gpu.store import FAULT, UNFINISHED, Store, faulty, pruned

CARD = {"kind": "nvidia-h200", "gpu": "NVIDIA H200"}
ABOUT = {"versions": {"torch": "2.11.0"}, "commit": "abc1234", "command": "python3 x"}


def part(name, lane="kernels", least=1.0, limit=50.0, beside=False, document="kernels"):
    return plan.Part(name, document, f"fake:{name}", least, limit, lane, (), beside=beside)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch):
    """The plan: parts of these names in place of the real ones."""

    def use(*made):
        monkeypatch.setattr("gpu.store.PARTS", made)
        return list(made)

    return use


class Script:
    """Stands for processes: ends each part as it is told, and notes what was asked."""

    def __init__(self, **endings):
        self.endings, self.asked, self.killed, self.open = endings, [], 0, 0

    def start(self, watch):
        return FakeProcess(self, watch)


class FakeProcess:
    alive = True

    def __init__(self, script, watch):
        self.script, self.watch = script, watch
        script.open += 1
        assert script.open == 1, "two processes share the GPU"

    def run(self, job, known, end):
        name = job["run"].removeprefix("fake:")
        self.script.asked.append((name, json.loads(json.dumps(job["have"])), known, end))
        ending = self.script.endings.get(name, [])
        outcome = ending.pop(0) if ending else done({"a": {"ms": 1.0}})
        self.watch(outcome.state)
        return outcome

    def kill(self):
        self.script.killed += 1
        self.script.open -= 1


def done(figures, **more):
    return Outcome("done", {"figures": figures, **more})


def died(figures, reason="the process ended with SIGKILL"):
    return Outcome("died", {"figures": figures}, reason)


def run(script, store, made, seconds=1000.0):
    said = []
    Scheduler(store, script.start, time.time() + seconds, say=said.append).run(made)
    return [name for name, *_ in script.asked], said


@pytest.fixture
def store(tmp_path: Path):
    def make():
        return Store(tmp_path, CARD, ABOUT)

    return make


def test_parts_run_in_their_order_and_leave_documents(parts, store, tmp_path: Path):
    made = parts(part("decode"), part("llava_steps", "llava", document="engine-llava"))
    names, _ = run(Script(), store(), made)
    assert names == ["decode", "llava_steps"]
    found = json.loads((tmp_path / "engine-llava-nvidia-h200.json").read_text())
    assert found["figures"]["llava_steps"] == {"a": {"ms": 1.0}}
    record = found["parts"]["llava_steps"]
    assert record["outcome"] == "done"
    assert record["commit"] == "abc1234"
    assert record["code"] == digests.digest(made[1])
    assert [target["met"] for target in found["targets"]] == [False] * len(found["targets"])
    assert found["targets"], "targets that nothing was measured for are there too"
    assert not list(tmp_path.glob("*.new"))


def test_parts_of_a_lane_share_a_process_and_others_end_it(parts, store):
    script = Script()
    made = parts(part("a"), part("b"), part("c", "llava"), part("d", "llava"), part("e"))
    run(script, store(), made)
    assert script.killed == 3
    assert script.open == 0


def test_figures_of_earlier_parts_are_known_to_later_ones(parts, store):
    script = Script(a=[done({"copy": {"tb_s": 3}})])
    run(script, store(), parts(part("a"), part("b", "llava")))
    assert script.asked[1][2]["a"] == {"copy": {"tb_s": 3}}


def test_what_is_measured_of_this_code_is_not_measured_again(parts, store, tmp_path: Path):
    made = parts(part("a"), part("b"))
    run(Script(), store(), made)
    again = store()
    again.load([tmp_path])
    script = Script()
    assert run(script, again, made)[0] == []
    other = Store(tmp_path, {**CARD, "kind": "nvidia-h100"}, ABOUT)
    other.load([tmp_path])
    assert run(Script(), other, made)[0] == ["a", "b"]
    changed = Store(tmp_path, CARD, ABOUT, digests={"a": "of other code"})
    changed.load([tmp_path])
    assert run(Script(), changed, made)[0] == ["a"]


def test_a_part_without_time_for_all_of_it_goes_on_where_it_was(parts, store, tmp_path: Path):
    made = parts(part("a"))
    first = Script(a=[done({"1x1024": {"ms": 2.0}}, left_out=["8x1024"], lines={"x": "y"})])
    run(first, store(), made)
    again = store()
    again.load([tmp_path])
    assert again.outcome("a") == "partial"
    script = Script()
    assert run(script, again, made)[0] == ["a"]
    assert script.asked[0][1] == {"figures": {"1x1024": {"ms": 2.0}}, "lines": {"x": "y"}}


def test_a_part_that_dies_goes_on_behind_what_killed_it(parts, store):
    killed = {"one": {"ms": 1.0}, "two": {FAULT: UNFINISHED}}
    script = Script(a=[died(killed), done({**killed, "three": {"ms": 3.0}})])
    kept = store()
    names, said = run(script, kept, parts(part("a"), part("b")))
    assert names == ["a", "a", "b"]
    assert script.asked[1][1]["figures"] == killed
    assert kept.records["a"]["outcome"] == "failed"
    assert "two" in kept.records["a"]["reason"]
    assert any("SIGKILL" in line for line in said)


def test_a_part_that_dies_at_once_is_not_tried_for_ever(parts, store):
    script = Script(a=[died({}) for _ in range(20)])
    names, _ = run(script, store(), parts(part("a"), part("b")))
    assert names == ["a", "b"]


def test_what_failed_is_tried_again_last_and_without_its_faults(parts, store, tmp_path: Path):
    made = parts(part("a"), part("b"), part("c"))
    faults = {"good": {"ms": 1.0}, "bad": {FAULT: "ValueError()"}}
    run(Script(a=[done(faults)], b=[done({}, left_out=["all"])]), store(), made)
    again = store()
    again.load([tmp_path])
    script = Script()
    assert run(script, again, made)[0] == ["b", "a"]
    assert script.asked[1][1]["figures"] == {"good": {"ms": 1.0}}


def test_a_part_is_left_out_if_too_little_time_is_left(parts, store):
    made = parts(part("long", least=100), part("short", least=1))
    kept = store()
    names, said = run(Script(), kept, made, seconds=50)
    assert names == ["short"]
    assert any("long: left out" in line for line in said)
    assert kept.outcome("long") == ""


def test_a_part_ends_at_its_limit_and_before_the_budget(parts, store):
    made = parts(part("short", limit=10), part("long", limit=400))
    script = Script()
    began = time.time()
    run(script, store(), made, seconds=100)
    ends = [end - began for *_, end in script.asked]
    assert ends[0] == pytest.approx(10, abs=1)
    assert ends[1] == pytest.approx(100 - RESERVE, abs=1)


@pytest.mark.parametrize(("limit", "outcome"), [(400, "partial"), (10, "failed")])
def test_an_entry_cut_off_by_the_budget_is_no_fault_of_its_own(parts, store, limit, outcome):
    cut = Outcome("cut off", {"figures": {"one": {"ms": 1.0}, "two": {FAULT: UNFINISHED}}})
    kept = store()
    run(Script(a=[cut]), kept, parts(part("a", limit=limit)), seconds=100)
    assert kept.outcome("a") == outcome
    assert ("two" in kept.figures["a"]) == (outcome == "failed")


def test_neighbours_in_which_nothing_is_timed_run_at_the_same_time():
    made = [part("a", beside=True), part("b", beside=True), part("c"), part("d")]
    assert [[p.name for p in some] for some in plan.rounds(made)] == [["a", "b"], ["c"], ["d"]]


def test_faults_are_found_and_taken_out_on_all_levels():
    found = {"a": {"b": {FAULT: "why"}, "c": {"ms": 1}}, "d": {FAULT: UNFINISHED}}
    assert faulty(found) == [("b", "why"), ("d", UNFINISHED)]
    assert pruned(found, None) == {"a": {"c": {"ms": 1}}}
    assert pruned(found, UNFINISHED) == {"a": found["a"]}


# Real processes.

FAKE = """
import os, signal, subprocess, sys, time


def entry(session, found, name, act=lambda cell: None):
    session.measure(found, name, 0, lambda cell: (cell.update(ms=1.0), act(cell)))


def good(session, found):
    entry(session, found, "only")
    session.line("seconds", "3")


def dies(session, found):
    entry(session, found, "first")
    entry(session, found, "second", lambda cell: os.kill(os.getpid(), signal.SIGKILL))
    entry(session, found, "third")


def hangs(session, found):
    entry(session, found, "first")
    child = subprocess.Popen(["sleep", "600"])
    open(os.environ["CHILD"], "w").write(str(child.pid))
    entry(session, found, "second", lambda cell: time.sleep(600))


def raises(session, found):
    entry(session, found, "first", lambda cell: 1 / 0)
    entry(session, found, "second")
    raise ValueError("at the end")
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "fake.py").write_text(textwrap.dedent(FAKE))
    variables = {**os.environ, "CHILD": str(tmp_path / "child")}
    variables["PYTHONPATH"] = os.pathsep.join((str(tmp_path / "code"), *sys.path))
    command = [sys.executable, str(digests.BENCHMARKS / "gpu_bench.py"), "--role", "worker"]
    return lambda watch: Process(command, variables, watch)


@pytest.mark.long
def test_real_processes_that_die_hang_and_raise(parts, store, tmp_path: Path, start):
    names = ("raises", "good", "dies", "hangs")
    made = parts(*(part(name, limit=8 if name == "hangs" else 100) for name in names))
    kept = store()
    Scheduler(kept, start, time.time() + 1000, dry=True, say=lambda text: None).run(made)
    assert {name: kept.outcome(name) for name in names} == {
        "good": "done",
        "raises": "failed",
        "dies": "failed",
        "hangs": "failed",
    }
    assert kept.records["good"]["lines"] == {"seconds": "3"}
    assert "at the end" in kept.records["raises"]["reason"]
    assert "ZeroDivisionError" in kept.figures["raises"]["first"][FAULT]
    assert kept.figures["raises"]["second"] == {"ms": 1.0}
    assert kept.figures["dies"] == {
        "first": {"ms": 1.0},
        "second": {FAULT: UNFINISHED},
        "third": {"ms": 1.0},
    }
    assert "in hangs" in kept.records["hangs"]["reason"], "where it was"
    assert kept.figures["hangs"]["first"] == {"ms": 1.0}
    child = Path("/proc") / (tmp_path / "child").read_text()
    until = time.time() + 10
    while alive(child):
        assert time.time() < until, "what a part starts ends with it"
        time.sleep(0.05)


def alive(process):
    """Not of one that has ended and waits for its parent."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.long
def test_a_run_that_is_stopped_goes_on_with_what_it_was_doing(parts, store, start):
    made = parts(part("hangs", beside=True), part("good", beside=True))
    kept = store()
    scheduler = Scheduler(kept, start, time.time() + 1000, dry=True, say=lambda text: None)
    timer = threading.Timer(8, scheduler.close)
    timer.start()
    scheduler.run(made)
    timer.join()
    assert kept.outcome("hangs") == "partial"
    assert "second" not in kept.figures["hangs"]
