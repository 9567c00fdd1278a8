"""The engine on one GPU, end to end: random weights in the shapes of LLaVA-1.5-7B and
Qwen2.5-VL-7B, against the chip's limits and against transformers.

    python benchmarks/engine.py [--models llava qwen] [--most 32]
    python benchmarks/engine.py --dry-run

Only the language models are made: images are rows of their prompts like any other. The part that
compares the registered methods needs pydantic, and is skipped where there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from gpu import methods, mixed, steps, throughput
from gpu.ceilings import measure_ceilings
from gpu.serving import Bench
from gpu.session import Figures, Part, Session, goals, open_session, parser, supervise
from gpu.shapes import LLAVA, QWEN, TINY_LLAVA, TINY_QWEN

SHAPES = {"llava": (LLAVA, TINY_LLAVA), "qwen": (QWEN, TINY_QWEN)}
RESUMES = ("methods",)
OF_EACH: tuple[tuple[str, float, Callable[[Session, Figures, Bench], None]], ...] = (
    ("steps", 40, steps.run_steps),
    ("programs", 25, steps.run_programs),
    ("mixed", 20, mixed.run_mixed),
    ("prompts", 10, steps.run_prompts),
    ("tokens", 15, throughput.run_tokens),
    ("methods", 40, methods.run_methods),
    ("peers", 40, throughput.run_peers),
    ("options", 60, throughput.run_options),
)


def main() -> None:
    made = parser(__doc__, budget=560)
    made.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    made.add_argument("--most", type=int, default=32, help="largest batch")
    options = made.parse_args()
    supervise(options)
    parts = [Part("ceilings", 10, measure_ceilings)]
    rows: list[tuple[str, str, str, float]] = []
    for name in options.models:
        bench = Bench(name, SHAPES[name][options.dry_run])
        parts += [
            Part(f"{name}_{what}", seconds, partial(run, bench=bench), what in RESUMES)
            for what, seconds, run in OF_EACH
        ]
        rows += [*steps.goals(name), *mixed.goals(name), *throughput.goals(name)]
    title = "-".join(["engine", *(options.models if len(options.models) == 1 else ())])
    open_session(title, options, goals(rows)).run(parts)


if __name__ == "__main__":
    main()
