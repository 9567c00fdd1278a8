"""A launch reads nothing from the device and never copies to it from pageable memory.

The device is "meta" here, which computes shapes only: whatever reads from it raises by itself, and
a dispatch mode looks at every copy. The last word has a real GPU, see test_gpu.py.
"""

from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch.utils._python_dispatch import TorchDispatchMode

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.edits import Gate, ResidualEdit
from saccade_interventions.phases import parse_rows
from saccade_interventions.plan import Plan
from saccade_interventions.rules import (
    AnyRule,
    Branch,
    ContrastRule,
    EarlyExit,
    GrowingContrastRule,
    HeadSinkRule,
    MeasuredGains,
    RecentRule,
    SaliencyRule,
    SinkRule,
)
from saccade_kernels import ops
from saccade_kernels.columns_reference import longest_context
from saccade_kernels.controls import ControlShape
from saccade_kernels.gradients import RowGradients
from saccade_server.engine.arrays import Array
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.engine.flight import InFlight
from saccade_server.engine.request import BranchInput, GenerateRequest
from saccade_server.engine.sampler import Sample
from saccade_server.engine.traces.data import (
    AttentionReading,
    EntropyReading,
    LensReading,
    ProjectionReading,
    SaliencyReading,
    SinkReading,
    TokenShareReading,
    Trace,
)
from saccade_server.grammars.grammar import Thinking
from saccade_server.models import sites
from saccade_server.models.family import ImageFeatures, serve
from saccade_testing import held, tiny
from saccade_testing.engine import SINK_DIMS, make_request


class OnlyAsyncCopies(TorchDispatchMode):
    """Raises where the host would wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.uploads = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False))
        given |= kwargs or {}
        if "non_blocking" in (a.name for a in func._schema.arguments):
            source = given.get("src", given["self"])
            if source.device != result.device:
                where = f"{func.name()}: {source.device} to {result.device}"
                assert given.get("non_blocking"), where
                assert result.device.type == "meta", where
                self.uploads += 1
        return result


@pytest.mark.parametrize("inference", [False, True])
def test_the_mode_sees_what_waits(inference: bool) -> None:
    with torch.inference_mode(inference), OnlyAsyncCopies():
        torch.zeros(2).to("meta", non_blocking=True)
        torch.empty(2, device="meta").copy_(torch.zeros(2), non_blocking=True)
        with pytest.raises(AssertionError, match="cpu to meta"):
            torch.zeros(2).to("meta")
        with pytest.raises(AssertionError, match="cpu to meta"):
            torch.empty(2, device="meta").copy_(torch.zeros(2))


def plan(prompt: Any, window: bool = False) -> Plan:
    """Everything a plan can ask for, in every row.

    ``window``: the class of generated keys depends on their distance, so they are no sinks.
    """
    builder = PlanBuilder(ControlShape(4, 4, 16), len(prompt.tokens), 0)
    tag, sink = builder.tag([(1, 4)]), builder.new_class()
    sites = tuple((layer, (0, 1, 2, 3)) for layer in (1, 2))
    rows = parse_rows("prompt+generated")
    builder.score(sites, [tag], rows, bias=1.0)
    builder.mass(sites, [(tag, sink, 0.5)], rows, [Gate((0.0, 1.0, 1.0), 0.01)])
    builder.head(sites, rows, 1.5, np.ones((8, 16), np.float32))
    direction = builder.vectors(np.eye(1, 64, dtype=np.float32))
    for residual in (0, 3, 4):
        builder.residual(ResidualEdit(residual, rows, direction, 0, shift=2.0, relative=True))
    builder.rule(SinkRule(0.8, (3, 11), (1, 2), ((0, sink),), generated=not window))
    if window:
        builder.rule(RecentRule(2, len(prompt.tokens) - 1, ((0, builder.new_class()),)))
    return builder.build()


def contrasted(
    request: GenerateRequest, early: bool = False, growing: bool = False
) -> GenerateRequest:
    """The request with a branch of the same tokens, or with early layers."""
    exits = EarlyExit((0, 1, 3)) if early else None
    branch = None if early else Branch("same")
    length = len(request.tokens)
    builder = PlanBuilder(ControlShape(4, 4, 16), length, 0)
    rule: AnyRule = ContrastRule(2.0, 1.0, 0.1, branch=branch, early=exits)
    if growing:
        rule = GrowingContrastRule(Branch("same"), 0.1, 5.0, 2.0, 0.9, 0.1)
    builder.rule(rule)
    branches = () if early else (BranchInput(tokens=request.tokens),)
    return replace(request, plan=builder.build(), branches=branches)


JUDGED = SaliencyRule((1, 2), candidates=5, draws=3, alpha=0.6, window=5)
"""Candidates may be rejected; their gradient follows all that the plan edits."""


def no_gradients(query: torch.Tensor, grad_output: torch.Tensor, *given: Any) -> RowGradients:
    """Shapes of what the saliency kernel gives, without knowing how many keys rows have."""
    (seqs, losses, heads, _), width = grad_output.shape, given[2].max_context
    return RowGradients(
        saliency=grad_output.new_empty(seqs, losses, heads, width, dtype=torch.float32),
        grad_query=torch.empty_like(grad_output),
        grad_key=grad_output[:, :, :2].clone(),
        grad_value=grad_output[:, :, :2].clone(),
    )


def measured(request: GenerateRequest, rows: str) -> GenerateRequest:
    """The request with heads that are chosen by comparing with a shorter prompt."""
    builder = PlanBuilder(ControlShape(4, 4, 16), len(request.tokens), 0)
    builder.rule(MeasuredGains((1, 3), 2.0, parse_rows(rows), report=2))
    branch = BranchInput(tokens=request.tokens[:10], measures=True)
    return replace(request, plan=builder.build(), branches=(branch,))


def calibrated(request: GenerateRequest, decode: str) -> GenerateRequest:
    """The request with key classes of single heads, which it finds itself."""
    sites = tuple((layer, (0, 1)) for layer in (1, 2))
    builder = PlanBuilder(ControlShape(4, 4, 16), len(request.tokens), 0)
    builder.per_head_mass(sites, [(0, 1, 0.5), (1, 1, -0.5)], parse_rows("prompt+generated"))
    builder.rule(HeadSinkRule(sites, 0.1, decode=decode))
    return replace(request, plan=builder.build())


def traced(request: GenerateRequest) -> GenerateRequest:
    """The request with readings of all its rows."""
    whole: dict[str, Any] = {"rows": (0, 1000), "layers": (0, 2), "heads": (1, 3)}
    keys = (((0, 5), (7, 9)), ((8, 12),))
    answer = len(request.tokens) - 1, 1000
    given = Array.pack(np.eye(2, 64, dtype=np.float32))
    every = Trace(
        (
            EntropyReading(name="entropy", rows=(0, 1000)),
            TokenShareReading(name="shares", rows=(0, 1000), groups=((3, 5), (), (7,))),
            AttentionReading(name="groups", keys=keys, sinks="group", recent=3, **whole),
            AttentionReading(name="keys", keys=keys, sinks="drop", each=True, **whole),
            AttentionReading(name="sums", keys=keys, over=frozenset({"row", "head"}), **whole),
            SinkReading(name="sinks", rows=(0, 1000), layers=(1, 2)),
            LensReading(name="lens", rows=(0, 1000), layers=(0, 4)),
            SaliencyReading(name="saliency", **{**whole, "rows": answer}, keys=((0, 1000),)),
            *(
                ProjectionReading(
                    name=site, rows=(0, 1000), layers=(0, 3), site=site, vectors=given
                )
                for site in ("residual", "attention_output", "mlp_output")
            ),
        )
    )
    return replace(request, trace=every)


def no_weights(query: torch.Tensor, *given: Any) -> torch.Tensor:
    """The shape of heads' weights."""
    width = longest_context(given[2])
    return query.new_empty(*query.shape[:2], width, dtype=torch.float32)


SAMPLING: list[dict[str, Any]] = [
    {"ignore_eos": True},
    {"ignore_eos": True, "temperature": 0.7},
    {"ignore_eos": True, "temperature": 0.7, "top_p": 0.8, "top_k": 5, "logprobs": 3},
    {"ignore_eos": True, "logit_bias": {5: 1.0}, "repetition_penalty": 1.2, "logprobs": 0},
    {"ignore_eos": True, "min_tokens": 3, "stop_token_ids": (4, 9), "temperature": 0.7},
    {"ignore_eos": True, "temperature": 0.7, "presence_penalty": 0.2, "frequency_penalty": 0.1},
]


KINDS = ["plain", "planned", "contrasted", "growing", "measured", "judged", "calibrated", "traced"]
KINDS += ["held"]
CASES = [
    *((kind, "qwen3") for kind in KINDS if kind != "judged"),
    pytest.param("judged", "qwen3", marks=pytest.mark.long),
    ("plain", "qwen3_vl"),
    # Rules know nothing of axes of positions, and the other kinds take most of a minute.
    *(pytest.param(kind, "qwen3_vl", marks=pytest.mark.long) for kind in KINDS[1:]),
]


@pytest.mark.parametrize("padded", [False, True], ids=["ordinary", "padded"])
@pytest.mark.parametrize(("kind", "family"), CASES)
def test_launching(family: str, padded: bool, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefills, decodes and mixed steps, with plans and every kind of sampling."""
    monkeypatch.setattr(ops, "attention", lambda query, *_: torch.empty_like(query))
    monkeypatch.setattr(ops, "saliency", no_gradients)
    monkeypatch.setattr(ops, "head_weights", no_weights)
    for measuring in ("column_sums", "settle_prompt_sinks", "find_head_sinks"):
        monkeypatch.setattr(ops, measuring, lambda *_: None)
    monkeypatch.setattr(ops, "residual_gradient", lambda grad, *_: grad)  # by autograd, slowly
    config = EngineConfig(
        model=family, max_batched_tokens=40, max_num_seqs=8, overlap=True, padded_decode=padded
    )
    model, vocabulary = serve(tiny.build(family).to("meta")), held.vocabulary()
    core = EngineCore(model, config, SINK_DIMS, vocabulary=vocabulary)
    pretend_to_wait(monkeypatch)
    refuse_lists(monkeypatch)
    prompt = tiny.prompt(family, images=0, text=20)
    tokens = 0
    with OnlyAsyncCopies() as copies:
        for number, sampling in enumerate(SAMPLING):
            chosen = plan(prompt, number > 2) if kind == "planned" and number % 2 else None
            request = make_request(prompt, str(number), chosen, 4, **sampling)
            if kind == "contrasted" and number:
                request = contrasted(request, early=number % 2 == 0)
            if kind == "growing" and number:
                request = contrasted(request, growing=True)
            if kind == "measured" and number:
                request = measured(request, "prompt" if number % 2 else "last+generated")
            if kind == "calibrated" and number:
                request = calibrated(request, ("running", "row", "frozen", "off")[number % 4])
            if kind == "traced":
                request = traced(request)
            if kind == "judged" and number:
                chosen = plan(prompt).with_rules(JUDGED)
                request = replace(request, plan=chosen)
            if kind == "held":
                request = held_back(request, number)
            assert core.submit(request) is None
        while core.busy:
            tokens += sum(len(output.tokens) for output in core.step())
    assert tokens == 4 * len(SAMPLING)
    assert copies.uploads > 0


def test_launching_a_prompt_with_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once their features are there: the tower, which is transformers', reads what it likes."""
    monkeypatch.setattr(ops, "attention", lambda query, *_: torch.empty_like(query))
    config = EngineConfig(model="qwen3_vl", max_batched_tokens=40, max_num_seqs=8, overlap=True)
    core = EngineCore(serve(tiny.build("qwen3_vl").to("meta")), config)
    prompt = tiny.prompt("qwen3_vl", images=2, text=20)
    features = {image.digest: on_meta(image.length) for image in make_request(prompt).images}
    monkeypatch.setattr(core._runner.features, "get", lambda images: features)
    pretend_to_wait(monkeypatch)
    refuse_lists(monkeypatch)
    show, shown = sites._show, []
    monkeypatch.setattr(sites, "_show", lambda *given: shown.append(1) or show(*given))
    with OnlyAsyncCopies():
        assert core.submit(make_request(prompt, "r", None, 3, ignore_eos=True)) is None
        while core.busy:
            core.step()
    assert len(shown) >= 2


def held_back(request: GenerateRequest, number: int) -> GenerateRequest:
    """The request under a grammar that has not begun: token 7 is a thought. Some have rules too."""
    grammar = held.regex("[ab]+", Thinking(opens=None, closes=11))
    if number % 3 == 1:
        request = contrasted(request, early=number % 2 == 0)
    if number % 3 == 2:
        builder = PlanBuilder(ControlShape(4, 4, 16), len(request.tokens), 0)
        builder.rule(JUDGED)
        request = replace(request, plan=builder.build())
    return replace(request, grammar=grammar)


def on_meta(count: int) -> ImageFeatures:
    """Features of an image, and those that are added behind the first two layers."""
    features = torch.empty(count, 64, device="meta")
    return ImageFeatures(features, (features, features))


def pretend_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device draws nothing; every token is 7."""

    def wait(self: InFlight) -> Any:
        return [(chunk, Sample(7, None) if chunk.draws else None) for chunk in self.chunks]

    monkeypatch.setattr(InFlight, "wait", wait)


def refuse_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.tensor(list, device=...) copies from pageable memory, unseen by dispatch modes."""
    tensor = torch.tensor

    def on_the_host_only(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        assert device is None or torch.device(device).type == "cpu"
        return tensor(*args, **kwargs)

    monkeypatch.setattr(torch, "tensor", on_the_host_only)
