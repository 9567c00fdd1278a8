"""Processes that compile kernels ahead, into Triton's cache on disk, while nothing is timed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait

from gpu.processes import own_command

DONE = "compiled"
LIMIT = 120
"""Seconds for all jobs of a call."""


class Compilers:
    """``count`` processes of a role; each answers every line it is sent, if it can."""

    def __init__(self, role: str, count: int) -> None:
        self._running = [
            subprocess.Popen(
                own_command(role),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for _ in range(count)
        ]

    def compile(self, jobs: list[str]) -> None:
        """Return when every job has been tried. A process that died leaves its jobs undone."""
        count = len(self._running)
        with ThreadPoolExecutor(count) as pool:
            sent = [
                pool.submit(_send, process, jobs[index::count])
                for index, process in enumerate(self._running)
            ]
            late = wait(sent, timeout=LIMIT).not_done
            for process, future in zip(self._running, sent, strict=True):
                if future in late:  # a kernel that never ends
                    process.kill()

    def close(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()


def _send(process: subprocess.Popen[str], jobs: list[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for job in jobs:
            process.stdin.write(job + "\n")
            process.stdin.flush()
            while (line := process.stdout.readline()) and line.strip() != DONE:
                pass  # what the compiler had to say
    except OSError:
        return


def jobs_from(lines: Iterable[str]) -> Iterator[str]:
    """The worker's side: yields jobs, and answers each when it has been tried."""
    for line in lines:
        yield line.strip()
        print(DONE, flush=True)
