"""What a method makes the model compute, counted where it is computed.

Two counts disagree where a pass is partial: tokens of scheduled chunks, as the engine's runner gets
them, and rows that entered each decoder layer. The first, by sequence, tells the request's own rows
from those of its branches; the second, divided by the number of layers, counts everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Work:
    """Rows computed: of prompts and of generated tokens, of branches, and through single layers."""

    steps: int = 0
    prompt: int = 0
    generated: int = 0
    branch_prompt: int = 0
    branch_generated: int = 0
    layer_rows: int = 0

    def rows(self) -> int:
        """Rows of scheduled chunks."""
        return self.prompt + self.generated + self.branch_prompt + self.branch_generated


@contextmanager
def counting(core: Any) -> Iterator[Work]:
    """Count all work of an engine core while the context is open."""
    work = Work()
    runner = core._runner
    launch = runner.launch

    def counted(chunks: Sequence[Any], *rest: Any) -> Any:
        work.steps += 1
        for chunk in chunks:
            _count(work, chunk)
        return launch(chunks, *rest)

    decoder = runner.model.decoder
    run = decoder._run

    def entered(hidden: Any, positions: Any, sites: Any, first: int, last: int) -> Any:
        work.layer_rows += len(hidden) * (last - first)
        return run(hidden, positions, sites, first, last)

    runner.launch, decoder._run = counted, entered
    try:
        yield work
    finally:
        del runner.launch, decoder._run


def _count(work: Work, chunk: Any) -> None:
    prompt = max(0, min(chunk.end, chunk.sequence.prompt_length) - chunk.start)
    generated = chunk.length - prompt
    if getattr(chunk.sequence, "leader", None) in (None, chunk.sequence):
        work.prompt += prompt
        work.generated += generated
    else:
        work.branch_prompt += prompt
        work.branch_generated += generated


def per_request(work: Work, requests: int, tokens: int, prompt: int, layers: int) -> dict[str, Any]:
    """Passes in units of one request's own: its prompt's rows, and one row a generated token.

    Args:
        prompt: rows of all the requests' prompts together.
    """
    generated = requests * (tokens - 1)  # the first token comes with the prompt
    full = work.layer_rows / layers
    return {
        "prompt_passes": round(work.prompt / prompt, 3),
        "branch_prompt_passes": round(work.branch_prompt / prompt, 3),
        "decode_rows_per_token": round(work.generated / generated, 3),
        "branch_rows_per_token": round(work.branch_generated / generated, 3),
        "other_full_passes_per_token": round((full - work.rows()) / (requests * tokens), 3),
        "steps_per_request": round(work.steps / requests, 2),
    }
