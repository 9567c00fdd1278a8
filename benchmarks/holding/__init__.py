"""Parts of grammars.py: a vocabulary of the size of a model's, what answers must be, an engine."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for place in ("kernels", "interventions", "server"):
    if str(ROOT / place) not in sys.path:
        sys.path.append(str(ROOT / place))
