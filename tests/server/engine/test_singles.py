"""A step of single tokens packed from seats reads what one packed chunk by chunk reads."""

from typing import Any

import numpy as np
import pytest
import torch

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.edits import ResidualEdit, TagRun
from saccade_interventions.phases import parse_rows
from saccade_interventions.plan import Plan
from saccade_kernels.controls import NEVER_ATTEND, ControlShape
from saccade_server.engine.batch import Step, fill_in, pack
from saccade_server.engine.singles import Singles
from saccade_testing import tiny
from saccade_testing.engine import core_with, make_request, run

ALIKE = ("slots", "query_starts", "context_lens", "page_table", "control_rows", "tag_rows")
EQUAL = ("num_decodes", "max_context", "edits", "prefills", "classes", "per_head_classes")


def plan(prompt: Any, kind: int) -> Plan:
    """Scores and masses; residuals; or keys that are hidden and nothing else."""
    builder = PlanBuilder(ControlShape(4, 4, 16), len(prompt.tokens), 0)
    rows, sites = parse_rows("question+generated"), ((1, (0, 1)), (2, (3,)))
    if kind == 0:
        tag = builder.tag([(2, 5)])
        builder.score(sites, [tag], rows, bias=1.0)
        builder.mass(sites, [(0, tag, 0.2)], rows)
    elif kind == 1:
        direction = builder.vectors(np.eye(1, 64, dtype=np.float32))
        builder.residual(ResidualEdit(2, rows, direction, 0, shift=2.0))
    built = builder.build()
    if kind == 2:
        object.__setattr__(built, "tags", (TagRun(1, 4, NEVER_ATTEND),))
    return built


def check(found: Singles, wanted: Step, drawn: torch.Tensor) -> None:
    tokens = wanted.tokens
    if wanted.sources is not None:
        tokens = fill_in(tokens, wanted.sources, drawn)
    assert torch.equal(found.tokens, tokens)
    assert torch.equal(found.positions, wanted.positions)
    for name in ALIKE:
        ours, theirs = getattr(found.attention, name), getattr(wanted.attention, name)
        assert ours.dtype == theirs.dtype, name
        assert torch.equal(ours, theirs), name
    for name in EQUAL:
        assert getattr(found.attention, name) == getattr(wanted.attention, name), name
    for name in ("controls", "tags"):
        assert getattr(found.attention, name) is getattr(wanted.attention, name), name
    assert found.residuals == wanted.residuals
    found.attention.validate()


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2_5_vl"])
def test_both_ways_of_packing_agree(
    family: str, overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sequences that come and go, cross pages, are preempted, end prompts with single tokens."""
    core = core_with(family, overlap=overlap, cache_tokens=64 * 9, max_batched_tokens=17)
    runner, steps = core._runner, []
    singles, decode = runner._singles.pack, runner._decode

    def note(chunks: Any, roster: Any, fill: Any) -> Any:
        steps.append(chunks)
        return decode(chunks, roster, fill)

    def both(roster: Any, starts: Any, rows: Any, drawn: torch.Tensor) -> Singles:
        found = singles(roster, starts, rows, drawn)
        chunks = steps[-1]
        positions = [runner._positions_of(chunk.sequence) for chunk in chunks]
        wanted = pack(chunks, positions, runner.tables, runner._upload, rows.mapping())
        check(found, wanted, drawn)
        return found

    monkeypatch.setattr(runner, "_decode", note)
    monkeypatch.setattr(runner._singles, "pack", both)
    requests = []
    for index in range(9):
        images = index % 2 if family == "qwen2_5_vl" else 0
        prompt = tiny.prompt(family, images=images, seed=index, text=44 + 2 * index)
        chosen = plan(prompt, index % 4) if index % 4 < 3 else None
        more = {"temperature": 0.9, "seed": index} if index % 3 else {}
        lasts = 14 + 9 * (index % 3)
        requests.append(make_request(prompt, f"{index}", chosen, lasts, ignore_eos=True, **more))
    found = run(core, requests)
    assert all(result.last.error is None for result in found.values())
    assert core.stats().preemptions > 0
    assert len(steps) > 20
    # All but the last token of a prompt lie in a page that is found again.
    prompt = tiny.prompt(family, seed=3, text=65 - len(tiny.prompt(family, text=1).tokens) + 1)
    assert len(prompt.tokens) == 65
    for name in ("first", "again"):
        run(core, [make_request(prompt, name, plan(prompt, 0), 3, ignore_eos=True)])
    assert any(c.start < c.sequence.prompt_length for some in steps for c in some)
