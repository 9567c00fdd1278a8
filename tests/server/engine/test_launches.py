"""What a captured step launches, counted without a GPU: one padded step under a dispatch mode.

Every operation of PyTorch that computes something is a launch; views and allocations are none. The
Triton kernels are called as on a GPU and counted where they would be launched.
"""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from msgspec.structs import replace as replace_fields
from torch.utils._python_dispatch import TorchDispatchMode

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.phases import Phase
from saccade_interventions.plan import Plan
from saccade_kernels import ops
from saccade_kernels.batch import AttentionBatch, Prefill, Run
from saccade_kernels.controls import CLASSES, ControlShape, Edit
from saccade_kernels.gpu import backend, tuning
from saccade_kernels.gpu.rope import rope_store_kernel
from saccade_kernels.head_sinks import HeadSinkTables
from saccade_kernels.sinks import SinkTags
from saccade_kernels.tables import ControlTables, PerHeadTable, TagTable
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.engine.decode import PLAIN, StepVariant
from saccade_server.engine.stages import StageVariant
from saccade_server.engine.traces.data import AttentionReading, Trace
from saccade_server.engine.wants import Search
from saccade_server.models.attention import AttentionCall
from saccade_server.models.family import serve
from saccade_server.models.gradient import Region, Rows, judge
from saccade_server.models.head_sinks import PromptSinks
from saccade_server.models.probes import SinkProbe
from saccade_server.models.residual import Reach
from saccade_server.models.scratch import ScratchCache
from saccade_server.models.tape import FixedTape
from saccade_testing import tiny
from saccade_testing.engine import SINK_DIMS, make_request


class Launches(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func._schema.name
        if func._schema.is_mutable or self._is_new(output, args, name):
            self.found[name] += 1
        return output

    @staticmethod
    def _is_new(output: Any, args: Any, name: str) -> bool:
        """True if the operation made what it returns, and more of it than room."""
        output = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(output, torch.Tensor) or name.startswith(("aten::empty", "aten::new_em")):
            return False
        given = [arg.untyped_storage() for arg in args if isinstance(arg, torch.Tensor)]
        return all(output.untyped_storage()._cdata != storage._cdata for storage in given)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    """A mode that counts. Kernels compute nothing, so what they leave is whatever memory holds."""
    counted = Launches()

    def run(kernel: Any, *arguments: Any, **options: Any) -> None:
        counted.found[f"triton::{kernel.fn.__name__}"] += 1

    monkeypatch.setattr(type(rope_store_kernel), "run", run)
    monkeypatch.setattr(ops, "_backend", lambda tensor: backend)
    return counted


def count(core: EngineCore, launches: Launches, variant: StepVariant) -> tuple[int, int]:
    """Launches a layer, and around all layers."""
    padded, model = core._runner._decoder, core._runner.model.decoder
    assert padded is not None
    totals, layers_ = [], model.layers
    for used in (layers_, layers_[:-1]):
        model.layers = used
        run = padded.idle(variant)
        with torch.inference_mode():
            run()  # as before a capture: what is made at first use is made here
        launches.found.clear()
        with torch.inference_mode(), launches:
            run()
        totals.append(launches.found.total())
    model.layers = layers_
    each = totals[0] - totals[1]
    return each, totals[0] - len(layers_) * each


KEYS = (((2, 5),), ((6, 8),))


def reading(**fields: Any) -> AttentionReading:
    over = frozenset({"head"})
    return AttentionReading(name="", rows=(0, 99), heads=(0, 1, 2, 3), over=over, **fields)


EDITED, RESIDUALS = (CLASSES, Reach.NOWHERE), (CLASSES, Reach.RESIDUALS)
EVERYWHERE = (CLASSES, Reach.EVERYWHERE)
PLAINLY = (PLAIN, Reach.NOWHERE)
SEARCHED = (CLASSES, Reach.NOWHERE, Search.PER_HEAD_CLASSES)
MOST = (10, 15)
"""Launches of a plain step that the design allows, a layer and around all layers."""

USUAL = {
    **{PLAINLY: (10, 9), EDITED: (10, 10), SEARCHED: (11, 10)},
    **{RESIDUALS: (12, 11), EVERYWHERE: (14, 11)},
}
"""A layer is four products, two of attention, and a kernel for each of two norms with the sums
before them, the heads and the gate. A site where something is edited is a kernel more, and at
residuals sums and norms are apart. Key classes of single heads are found in one more. An edited
step tells the classes of its pages in one launch for all layers."""

TODAY = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "qwen2_5_vl", "qwen3_vl"), USUAL),
    # Two kinds of rotation, and embeddings are scaled. Norms of what is edited are apart.
    "gemma3_text": {PLAINLY: (10, 11), EDITED: (10, 12), RESIDUALS: (13, 13), EVERYWHERE: (16, 13)},
}
"""Launches a layer and around, by number of classes and the sites that are edited, in bfloat16;
transformers' layers took 46 a layer."""


@pytest.mark.parametrize("family", TODAY)
def test_a_step_launches(family: str, launches: Launches) -> None:
    model = serve(tiny.build(family, dtype=torch.bfloat16))
    settings = {"dtype": "bfloat16", "padded_decode": True, "overlap": True}
    core = EngineCore(model, EngineConfig(model=family, cache_tokens=2048, **settings))
    found = {form: count(core, launches, StepVariant(2, *form)) for form in TODAY[family]}
    assert found == TODAY[family], dict(launches.found)
    assert max(layer for layer, _ in (found[PLAINLY], found[EDITED])) <= MOST[0]
    assert max(around for _, around in (found[PLAINLY], found[EDITED])) <= MOST[1]


def test_sinks_are_found_in_two_launches_a_layer(launches: Launches) -> None:
    """One that scores a step's rows, and one that settles tags."""
    count, index = 5, torch.arange(5)
    tags = SinkTags(
        slots=index,
        position=index,
        starts=torch.tensor([0, 2, count]),
        base=index,
        threshold=torch.ones(2),
        tag_row=index[:2],
        remap=torch.zeros(2, CLASSES, dtype=torch.int64),
        require=index[:2],
        whole=torch.ones(2, dtype=torch.uint8),
    )
    tables = (torch.zeros(2, 3, 8).byte(), torch.zeros(3, 2).byte())
    probe = SinkProbe(frozenset({1}), index, index[:2], index, torch.zeros(3, 64), tags, *tables)
    hidden = torch.zeros(7, 64, dtype=torch.bfloat16)
    with torch.inference_mode(), launches:
        probe.observe(1, hidden)
    assert launches.found == {"triton::score_kernel": 1, "triton::settle_kernel": 1}


BACK = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "qwen2_5_vl", "qwen3_vl"), (14, 27)),
    "gemma3_text": (16, 28),
}
"""Launches of going back through a layer, and around all layers: four products, those of attention,
one of the heads, the gate and each norm, the rows of its queries and shares of keys. By autograd,
forward and back, it took 88 (Llama), 110 (Qwen3) or 164 (Gemma 3), and 14 more where it counts."""


@pytest.mark.parametrize("family", BACK)
def test_going_back_launches(family: str, launches: Launches) -> None:
    """For two rows of a step in fixed places, five candidates each."""
    model = serve(tiny.build(family, dtype=torch.bfloat16))
    cache, layers_ = ScratchCache(model, 2, 128), model.decoder.layers
    totals = []
    for used in (layers_, layers_[:-1]):
        model.decoder.layers = used
        tape = FixedTape(model.decoder.spec, torch.zeros(4, 8, 64, dtype=torch.bfloat16))
        step, at = cache.step([(0, 1), (1, 1)]), torch.arange(2)
        positions = torch.zeros(model.axes, 2, dtype=torch.int64)
        counts = torch.ones(2, len(used), dtype=torch.bool)
        rows, region = Rows(step, positions, tape, at), Region(at, at + 1, counts)
        launches.found.clear()
        with torch.inference_mode(), launches:
            judge(model, rows, region, 0, torch.zeros(2, 5).long())
        totals.append(launches.found.copy())
    each = (totals[0] - totals[1]).total()
    around = totals[0].total() - len(layers_) * each
    assert (each, around) == BACK[family], dict(totals[0] - totals[1])


DRAWS = {"free draw": 9, "filtered draw": 34}
"""Launches of a draw for rows that sample, as many as PyTorch has operations; greedy rows are drawn
in the two last launches of a step."""


@pytest.mark.parametrize("kind", DRAWS)
def test_a_draw_launches(kind: str) -> None:
    model = serve(tiny.build("llama", dtype=torch.bfloat16))
    settings = {"dtype": "bfloat16", "padded_decode": True, "overlap": True}
    core = EngineCore(model, EngineConfig(model="llama", cache_tokens=2048, **settings))
    run, counted = core._runner._decoder.idle(StageVariant(kind, 4)), Launches()
    with torch.inference_mode(), counted:
        run()
    assert counted.found.total() == DRAWS[kind], dict(counted.found)


def test_who_has_sinks_among_generated_rows_is_known_in_six_launches(launches: Launches) -> None:
    """In a graph ahead of the step, in which they are found in two launches a layer.

    Residuals that are looked at have their sums and norms apart. Of four layers all four are.
    """
    model = serve(tiny.build("llama", dtype=torch.bfloat16))
    settings = {"dtype": "bfloat16", "padded_decode": True, "overlap": True}
    config = EngineConfig(model="llama", cache_tokens=2048, **settings)
    core = EngineCore(model, config, sink_dims=(3, 11))
    form = (CLASSES, Reach.NOWHERE, Search.OWN_TAGS)
    plain, found = (count(core, launches, StepVariant(2, *f)) for f in (PLAINLY, form))
    assert (found[0], found[1] - plain[1]) == (plain[0], 4 * 2 + 4), dict(launches.found)
    run, counted = core._runner._decoder.idle(StageVariant("sinks", 4)), Launches()
    with torch.inference_mode(), counted:
        run()
    assert counted.found.total() == 6, dict(counted.found)


def test_windows_move_in_seven_launches() -> None:
    """For all sequences together, in a graph ahead of the step."""
    model = serve(tiny.build("llama", dtype=torch.bfloat16))
    settings = {"dtype": "bfloat16", "padded_decode": True, "overlap": True}
    core = EngineCore(model, EngineConfig(model="llama", cache_tokens=2048, **settings))
    run, counted = core._runner._decoder.idle(StageVariant("windows", 4)), Launches()
    with torch.inference_mode(), counted:
        run()
    assert counted.found.total() == 7, dict(counted.found)


STAGES = {
    "contrast": {
        "parts_kernel": 2,  # the highest logit and the sum of exponentials, of p and of q
        "contrast_kernel": 1,
        "mask_kernel": 1,  # which reads bits alone, and writes what a grammar takes away
        "around": 11,  # whether all was finite, and the greedy draw in the leaders' rows
    },
    "contrast with early layers": {
        "parts_kernel": 4,  # as above, to compare and to combine
        "divergence_kernel": 1,
        "contrast_kernel": 1,
        "mask_kernel": 1,
        "norm_kernel": 1,
        "linear": 1,
        "around": 27,
    },
    "masks": {"around": 1},
    "masked rows": {"mask_kernel": 1, "around": 10},
}
"""Launches of stages behind a step, whose own launches they do not change. What goes through whole
vocabularies is the output projection, kernels, and two operations of the greedy draw."""


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_launches(stage: str, size: int, launches: Launches) -> None:
    model = serve(tiny.build("llama", dtype=torch.bfloat16))
    settings = {"dtype": "bfloat16", "padded_decode": True, "overlap": True}
    core = EngineCore(model, EngineConfig(model="llama", cache_tokens=2048, **settings))
    padded = core._runner._decoder
    assert count(core, launches, StepVariant(2, *PLAINLY)) == USUAL[PLAINLY]
    run = padded.idle(StageVariant(stage, size))
    launches.found.clear()
    with torch.inference_mode(), launches:
        run()
    found: Counter[str] = Counter()
    for name, times in launches.found.items():
        short = name.split("::")[1]
        found[short if short in STAGES[stage] else "around"] += times
    assert found == STAGES[stage], dict(launches.found)


def test_sinks_of_heads_are_found_for_all_prompts_at_once(launches: Launches) -> None:
    """One that settles their classes, behind the rows, and their attention in two."""
    shape, index = ControlShape(layers=2, heads=4, head_dim=16), torch.arange(3)
    int32 = index.int()
    run = Run(4, 1, (Edit.MASS,) * 2)
    table = PerHeadTable.allocate(3, 3, shape, 64)
    batch = AttentionBatch(
        slots=torch.arange(8),
        query_starts=4 * int32,
        context_lens=torch.tensor([4, 4], dtype=torch.int32),
        page_table=torch.zeros(2, 1, dtype=torch.int32),
        num_decodes=0,
        max_context=0,
        control_rows=torch.ones(8, dtype=torch.int32),
        tag_rows=int32[1:],
        prefills=(Prefill(4, 4, (run,)),) * 2,
        controls=ControlTables.allocate(2, shape),
        tags=replace(TagTable.allocate(3, shape, 64), per_head=table),
    )
    tables = HeadSinkTables.allocate(3, shape, 2 * 2 * 4 * 64)
    measure = PromptSinks(frozenset({0, 1}), torch.arange(8), int32[:2], batch, tables, index[:0])
    query = torch.zeros(8, 4, 16, dtype=torch.bfloat16)
    keys = torch.zeros(1, 64, 2, 16, dtype=torch.bfloat16)
    found = []
    for layer in (0, 1):
        launches.found.clear()
        with torch.inference_mode(), launches:
            measure.before(AttentionCall(query, keys, keys, batch, layer, 0.25, 0.0, 0))
        found.append(launches.found.copy())
    assert found[1] == {
        "aten::index_select": 1,
        "triton::list_kernel": 1,
        "triton::prefill_masses_kernel": 1,
        "triton::prefill_plain_kernel": 1,
        "triton::prefill_values_kernel": 1,
        "triton::column_kernel": 1,
        "triton::settle_prompts_kernel": 1,
    }


READ = {
    "masses": (reading(keys=KEYS, recent=4), 9),
    "masses and sinks": (reading(keys=KEYS, recent=4, sinks="group"), 15),
    "a map": (reading(keys=KEYS, each=True), 12),
}
"""Launches that a layer of a trace of one decode takes, means over heads: its weights take six.
Where sinks are told apart one more in every layer of the model scores the row."""


@pytest.mark.parametrize("kind", READ)
def test_a_trace_launches(kind: str, launches: Launches) -> None:
    """Behind the step, and nothing else of the step changes; without a trace there is nothing."""
    totals = []
    for layers in ((), (1,), (1, 2)):
        model = serve(tiny.build("llama", dtype=torch.bfloat16))
        settings = {"dtype": "bfloat16", "padded_decode": True, "overlap": True}
        config = EngineConfig(model="llama", cache_tokens=2048, **settings)
        core = EngineCore(model, config, SINK_DIMS)
        trace = Trace((replace_fields(READ[kind][0], layers=layers),)) if layers else None
        request = make_request(tiny.prompt("llama"), max_tokens=8, ignore_eos=True)
        core.submit(replace_fields(request, trace=trace))
        core.step()
        launches.found.clear()
        with torch.inference_mode(), launches:
            core.step()
        totals.append(launches.found.copy())
    plain, one, two = totals
    assert (two - one).total() == READ[kind][1], dict(two - one)
    assert not plain - one


def question_plan(rows: int, length: int) -> Plan:
    """Mass of one key class to another in two of four layers, for the last ``rows`` of a prompt."""
    builder = PlanBuilder(ControlShape(4, 4, 16), length, length - rows)
    image, sink = builder.tag([(40, 200)]), builder.tag([(0, 1), (50, 51)])
    sites = tuple((layer, (0, 1, 2, 3)) for layer in (1, 2))
    phases = (Phase.QUESTION, Phase.LAST, Phase.GENERATED)
    builder.mass(sites, moves=[(sink, sink, -0.4), (image, sink, 0.4)], phases=phases)
    return builder.build()


@pytest.mark.parametrize("rows", [40, 260], ids=["few rows", "many rows"])
def test_edited_rows_of_a_prompt_launch(
    rows: int, launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an edited layer the lists of keys and two launches more: few rows are split over keys.

    Around all layers counters of rows whose masses move are read, before and behind.
    """
    model = serve(tiny.build("llama", dtype=torch.bfloat16))
    settings = {"dtype": "bfloat16", "max_batched_tokens": 300, "overlap": True}
    config = replace(tuning.split_config(16, torch.bfloat16), least_keys=256)
    monkeypatch.setattr(tuning, "split_config", lambda dim, dtype: config)
    found = []
    for plan in (None, question_plan(rows, 500)):
        core = EngineCore(model, EngineConfig(model="llama", cache_tokens=2048, **settings))
        prompt = replace(tiny.prompt("llama"), tokens=tuple(at % 9 + 3 for at in range(500)))
        assert core.submit(make_request(prompt, plan=plan, max_tokens=1)) is None
        core.step()
        launches.found.clear()
        with torch.inference_mode(), launches:
            core.step()
        found.append(launches.found.copy())
    plain, edited = found
    assert plain["triton::prefill_plain_kernel"] == 4
    few = ("prefill_split_kernel", "merge_rows_kernel")
    many = ("prefill_masses_kernel", "prefill_values_kernel")
    names = ("list_kernel", *(few if rows == 40 else many))
    assert edited - plain == {f"triton::{name}": 2 for name in names} | {"aten::index_select": 2}
    assert not plain - edited
