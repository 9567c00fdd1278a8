"""Run the tests that take minutes, and record how each of them ended and how long it took.

    python benchmarks/long_tests.py [arguments of pytest]

Exits with pytest's status. A run of some of them alone, with ``-k`` say, is shown but not recorded
unless the environment variable OUT names a folder.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field

import pytest
import report


@dataclass(eq=False)  # pytest keeps plugins in a set
class Record:
    """A plugin of pytest that notes each test's outcome and seconds, fixtures included."""

    tests: dict[str, dict[str, object]] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        noted = self.tests.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0})
        noted["seconds"] = round(float(str(noted["seconds"])) + report.duration, 1)
        if report.outcome != "passed":
            noted["outcome"] = (
                report.outcome if report.when == "call" or report.skipped else "error"
            )
            if report.skipped and isinstance(report.longrepr, tuple):
                noted["reason"] = report.longrepr[2].removeprefix("Skipped: ")


def main() -> int:
    record = Record()
    arguments = sys.argv[1:]
    status = pytest.main(["-m", "long", "-v", "--durations=0", *arguments], plugins=[record])
    if not arguments or "OUT" in os.environ:
        outcomes = [test["outcome"] for test in record.tests.values()]
        figures = {
            "exit_status": int(status),
            "outcomes": {name: outcomes.count(name) for name in sorted(map(str, set(outcomes)))},
            "tests": record.tests,
        }
        path = report.write("long-tests", figures, [], show=False)
        print(f"recorded in {path}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
