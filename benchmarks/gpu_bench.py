"""Measure everything on a GPU in the seconds there are, most important first.

    python3 benchmarks/gpu_bench.py --budget 560 [--out DIR] [--wheels DIR] [--parts NAME ...]
    python3 benchmarks/gpu_bench.py --dry-run

Results are documents with targets (benchmarks/README.md), whole after every part. Parts that the
results in benchmarks/results or DIR hold already, of this very code and card, are not measured
again, so minutes here and there add up. Needs the machine's own python3 with torch, triton and
transformers; other packages may come as wheels, which are unpacked, not installed. --dry-run runs
every part on a CPU with tiny shapes, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

STARTED = time.time()

from gpu import machine, plan  # noqa: E402
from gpu.processes import Process, own_command  # noqa: E402
from gpu.scheduler import Scheduler  # noqa: E402
from gpu.store import Store  # noqa: E402
from gpu.summary import summary  # noqa: E402
from report import HERE, RESULTS, commit, folder  # noqa: E402

DRAWING = 4
"""Seconds that plots get where the budget has fewer left."""

WHEELS = HERE.parent / "build" / "wheels"


def options() -> argparse.Namespace:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--budget", type=float, default=560, help="seconds for everything")
    made.add_argument("--out", type=Path, help="where results go: $OUT or benchmarks/results")
    made.add_argument("--wheels", type=Path, default=WHEELS, help="packages that are missing here")
    made.add_argument("--parts", nargs="+", metavar="NAME", help="only these")
    made.add_argument("--most", type=int, default=32, help="largest batch")
    made.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU, no figures")
    made.add_argument("--list", action="store_true", help="the parts in their order, no run")
    made.add_argument("--role", help=argparse.SUPPRESS)
    found = made.parse_args()
    if found.budget <= 0:
        made.error("--budget is a number of seconds above 0")
    return found


def main() -> int:
    """The exit code: 0, or 2 where nothing can be measured."""
    given = options()
    if given.role is not None:
        return play(given.role)
    try:
        parts = plan.chosen(given.parts)
        if given.list:
            print("\n".join(f"{part.name:18} {part.document}" for part in parts))
            return 0
        variables = machine.environment(machine.unpack(given.wheels))
        found = machine.probe(variables, given.dry_run)
    except (machine.NoGpuError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    out = given.out or (Path(tempfile.mkdtemp()) if given.dry_run else folder())
    about = {
        "versions": found["versions"],
        "commit": commit(),
        "command": shlex.join(["python3", *sys.argv]),
    }
    store = Store(out, found["hardware"], about, given.dry_run)
    store.load([RESULTS, out])
    say(f"{found['hardware'].get('gpu', found['hardware']['kind'])}, results in {out}")
    signal.signal(signal.SIGTERM, stop)

    def start(watch: object) -> Process:
        return Process(own_command("worker"), variables, watch)  # type: ignore[arg-type]

    end = STARTED + given.budget
    scheduler = Scheduler(store, start, end, given.dry_run, given.most, say)
    try:
        scheduler.run(parts)
    except KeyboardInterrupt:
        say("stopped; what was measured is kept")
    draw(store, max(end - time.time(), DRAWING))
    print()
    for line in summary(store, parts):
        print(line)
    return 0


def play(role: str) -> int:
    """This process as one of those that the run is made of."""
    if role == "worker":
        from gpu import worker

        worker.main()
    elif role == "compile":
        from gpu import tune

        tune.work()
    elif role.startswith("check "):
        from gpu import accuracy

        accuracy.main(int(role.removeprefix("check ")))
    return 0


def stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def say(text: str) -> None:
    """A line of progress, with the seconds since the start."""
    print(f"[{time.time() - STARTED:5.0f}] {text}", flush=True)


def draw(store: Store, seconds: float) -> None:
    """Plots beside the results, where there is matplotlib."""
    documents = sorted(store.out.glob(f"*-{store.hardware['kind']}.json"))
    command = [sys.executable, str(HERE / "plot.py"), *map(str, documents)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        say("no plots: they took too long")
        return
    if done.returncode:
        say(f"no plots: {(done.stderr.strip().splitlines() or ['?'])[-1]}")


if __name__ == "__main__":
    sys.exit(main())
