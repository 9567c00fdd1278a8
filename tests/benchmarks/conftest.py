"""The scripts of benchmarks/ run by path; here what they import is importable too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
