"""The embedded demo model: a small LLaVA, its world, and the script that trained it.

Importing this package is cheap: it loads neither torch nor transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = [
    "EFFECTS_PATH",
    "RESULTS_PATH",
    "SAMPLES",
    "SAMPLES_PATH",
    "SHOWN_SAMPLE",
    "model_path",
    "sample_path",
]

_FOLDER: Final = Path(__file__).resolve().parent

RESULTS_PATH: Final = _FOLDER / "results.json"
EFFECTS_PATH: Final = _FOLDER / "effects.json"
SAMPLES_PATH: Final = _FOLDER / "samples"
SAMPLES: Final = (
    "clear-1",
    "clear-2",
    "clear-3",
    "weak-1",
    "absent-1",
    "absent-2",
    "absent-3",
    "absent-4",
)
SHOWN_SAMPLE: Final = "absent-1"
"""The one that ``saccade demo``, the greeting and the README show."""


def model_path() -> Path:
    """The folder with the weights and the processor, as `from_pretrained` wants it."""
    return _FOLDER / "model"


def sample_path(name: str) -> Path:
    """The file of a sample image, one of SAMPLES."""
    if name not in SAMPLES:
        raise ValueError(f"no sample {name!r}; there are {', '.join(SAMPLES)}")
    return SAMPLES_PATH / f"{name}.png"
