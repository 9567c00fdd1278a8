"""A process that runs parts: a line of JSON on its input for each, the result in a file.

A CUDA error leaves a process without a usable GPU, a bad kernel may end it or never end. So parts
do not run where the time is kept.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GONE = 75


@dataclass
class Worker:
    """What stays loaded from part to part: models, by the name of their shape."""

    benches: dict[str, Any] = field(default_factory=dict)

    def run(self, job: dict[str, Any]) -> None:
        """One part. Always leaves a state that says how it ended."""
        import torch

        from gpu.session import GpuGone, Session

        named = {"known": json.loads(Path(job["known"]).read_text()), **job["have"]}
        about = {name: job[name] for name in ("deadline", "dry", "most")}
        session = Session(**about, **named, state=Path(job["state"]))
        module, _, function = job["run"].partition(":")
        if session.dry:
            torch.set_num_threads(1)
        torch.manual_seed(0)
        try:
            call = getattr(importlib.import_module(module), function)
            bench = [self._bench(job["model"], session.dry)] if job["model"] else []
            with torch.no_grad():
                call(session, session.figures, *bench)
            session.check_gpu()
            session.save(ended="done")
        except GpuGone as error:
            session.save(ended="gone", reason=f"the GPU no longer answered: {error}"[:600])
            sys.exit(GONE)
        except Exception:
            session.save(ended="failed", reason=traceback.format_exc(limit=-6)[-2000:])
        del session
        gc.collect()
        if not job["dry"] and torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _bench(self, model: str, dry: bool) -> Any:
        from gpu.serving import Bench
        from gpu.shapes import MODELS

        if model not in self.benches:
            self.benches = {model: Bench(model, MODELS[model][dry])}
        return self.benches[model]


def main() -> None:
    """Until the input closes."""
    faulthandler.enable()
    worker = Worker()
    for line in sys.stdin:
        worker.run(json.loads(line))
