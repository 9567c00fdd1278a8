"""VHR in the engine against its algorithm written out in transformers' own float64 forward.

The oracle knows no caches, chunks, tables or steps. For every measured layer it runs both prompts
anew, from token ids and pixels on (so transformers makes the positions of the shortened prompt),
with the gains of the layers below, and compares head outputs by the paper's equations in plain
Python; then it recomputes the whole sequence for every token.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace as with_fields
from transformers import AttentionInterface

from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Context, ModelFacts, Prompt
from saccade_interventions.edits import HeadEdit
from saccade_interventions.phases import Phase
from saccade_interventions.registry import Registry
from saccade_interventions.siblings import deleted_plan
from saccade_server.api.branches import branches_of
from saccade_server.engine.prefix import PageKeyer
from saccade_server.engine.request import FinishReason
from saccade_server.engine.sequence import Sequence
from saccade_server.models.prompt import PreparedImage, RenderedPrompt
from saccade_server.models.reinforce import HeadReinforcement

FACTS = ModelFacts(layers=4, heads=4, kv_heads=2, head_dim=16, hidden_size=64, sink_dims=(3, 11))
LAYERS = (1, 2, 3)  # the default of four: 1, and the last two
STEPS = 6
VHR: dict[str, Any] = {"method": "vhr"}
CHUNKED: dict[str, Any] = {"method": "vhr", "rows": "last+generated"}
Edit = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]
"""Layer, scores [heads, rows, keys], visible image keys, residual, prompt length; attention."""


def select(z: torch.Tensor, z0: torch.Tensor, entry: dict[str, Any]) -> list[int]:
    """Equations 4, 6 and 7 for one layer; z and z0 are [heads, head_dim]."""
    vhd = [float((a - b).norm()) for a, b in zip(z, z0, strict=True)]
    if entry.get("relative"):
        vhd = [value / float(b.norm()) for value, b in zip(vhd, z0, strict=True)]
    ta = [float(b @ b) for b in z0]
    deviation = statistics.pstdev if entry.get("std") == "population" else statistics.stdev
    limit, size = (statistics.mean(x) + deviation(x) for x in (vhd, ta))
    if entry.get("drop_outliers", True):
        vhd = [0.0 if v > limit and t > size else v for v, t in zip(vhd, ta, strict=True)]
    return [i for i, value in enumerate(vhd) if value > statistics.median_low(vhd)]


@dataclass
class Oracle:
    """Two branches, one sweep over the layers, then greedy generation."""

    model: Any
    prompt: Any
    entry: dict[str, Any]
    edit: Edit = lambda layer, scores, image, residual, length: scores.softmax(-1)
    chosen: dict[int, list[int]] = field(default_factory=dict)
    seen: dict[int, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        AttentionInterface.register("vhr_oracle", self._attention)
        self.model.set_attn_implementation({"text_config": "vhr_oracle"})
        for decoder in self.model.get_decoder().layers:
            decoder.register_forward_pre_hook(self._remember, with_kwargs=True)

    def _remember(self, module: Any, args: Any, kwargs: Any) -> None:
        self._residual = (args[0] if args else kwargs["hidden_states"])[0]

    @torch.no_grad()
    def measure(self) -> None:
        for layer in self.entry.get("layers", LAYERS):
            self.forward(list(self.prompt.tokens), gains=True)
            z = self.seen[layer]
            self.forward(self._bare(), gains=self.entry.get("branch_gains", True), bare=True)
            self.chosen[layer] = select(z, self.seen[layer], self.entry)

    @torch.no_grad()
    def run(self, steps: int = STEPS) -> list[tuple[int, float]]:
        tokens, found = list(self.prompt.tokens), []
        for _ in range(steps):
            logprobs = self.forward(tokens, gains=True).log_softmax(-1)
            found.append((int(logprobs.argmax()), float(logprobs.max())))
            tokens.append(found[-1][0])
        return found

    def forward(self, tokens: list[int], gains: bool, bare: bool = False) -> torch.Tensor:
        """Logits of the last token; head outputs of the last prompt row are left in ``seen``."""
        self._hides = bare and self.entry.get("without_image") == "hidden"
        images = () if bare and not self._hides else self.prompt.images
        self._image = torch.zeros(len(tokens), dtype=torch.bool)
        for image in images:
            self._image[image.start : image.start + image.length] = True
        ends = [i.start + i.length for i in self.prompt.images]
        length = len(self._bare()) if bare else len(self.prompt.tokens)
        question = max(ends) - (len(self.prompt.tokens) - length)
        rows = self.entry.get("rows", "prompt+generated").split("+")
        first = {"prompt": 0, "question": question, "last": length - 1, "generated": length}
        start = min(first[name] for name in rows)
        stop = length if "generated" not in rows else len(tokens)
        self._rows = range(start, stop) if gains else range(0)
        self._last = length - 1
        ids = torch.tensor([tokens])
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if images:
            grids = [image.grid for image in images]
            parts = [torch.from_numpy(image.pixels).double() for image in images]
            inputs["pixel_values"] = torch.stack(parts) if grids[0] is None else torch.cat(parts)
            if grids[0] is not None:
                inputs["image_grid_thw"] = torch.tensor(grids)
                inputs["mm_token_type_ids"] = (ids == self.model.config.image_token_id).int()
        return self.model(**inputs).logits[0, -1]

    def _bare(self) -> list[int]:
        tokens = list(self.prompt.tokens)
        if self.entry.get("without_image") == "hidden":
            return tokens
        for image in reversed(self.prompt.images):
            del tokens[image.start : image.start + image.length]
        return tokens

    def _attention(self, module: Any, q: Any, k: Any, v: Any, mask: Any, **kw: Any) -> Any:
        group = q.shape[1] // k.shape[1]
        k, v = k[0].repeat_interleave(group, 0), v[0].repeat_interleave(group, 0)
        scores = q[0] @ k.transpose(1, 2) * kw["scaling"]
        scores = scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), -torch.inf)
        if self._hides:
            scores = scores.masked_fill(self._image, -torch.inf)
        image = self._image & (not self._hides)
        weights = self.edit(module.layer_idx, scores, image, self._residual, self._last + 1)
        output = weights.nan_to_num(0.0) @ v  # [heads, rows, head_dim]
        self.seen[module.layer_idx] = output[:, self._last].clone()
        for head in self.chosen.get(module.layer_idx, ()):
            for row in self._rows:
                output[head, row] *= self.entry.get("gain", 2.0)
        return output.transpose(0, 1)[None], None


@pytest.fixture
def ask(make_request: Any) -> Callable[..., Any]:
    """``ask(prompt, entries, name, max_tokens, **sampling)``: a request as the API makes it."""

    def make(prompt: Any, entries: Any, name: str = "r", steps: int = STEPS, **sampling: Any):
        spans = tuple((i.start, i.start + i.length) for i in prompt.images)
        context = Context(FACTS, Prompt(len(prompt.tokens), spans))
        plan = compile_plan(Registry.discover().parse(entries), context)
        images = tuple(
            PreparedImage(
                f"{hash(i.pixels.tobytes()):x}",
                i.start,
                i.length,
                i.pixels,
                i.grid,
                2 if i.grid else 1,
            )
            for i in prompt.images
        )
        branches = branches_of(plan, RenderedPrompt(tuple(prompt.tokens), "", (), images))
        sampling = {"ignore_eos": True, "logprobs": 1, **sampling}
        return with_fields(make_request(prompt, name, plan, steps, **sampling), branches=branches)

    return make


def check(result: Any, wanted: list[tuple[int, float]]) -> None:
    assert result.tokens == [token for token, _ in wanted[: len(result.tokens)]]
    found = np.array([entry.logprob for entry in result.logprobs])
    np.testing.assert_allclose(found, [value for _, value in wanted[: len(found)]], atol=2e-6)


def heads_of(result: Any) -> dict[int, list[int]]:
    return {layer: list(heads) for layer, heads in result.last.receipt.heads.selected}


@pytest.mark.parametrize(
    "options", [{}, {"rows": "last+generated", "gain": 3.0}], ids=["all", "last"]
)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl"])
def test_the_algorithm_written_out(
    family: str, options: Any, tiny: Any, make_core: Any, ask: Any, run: Any
) -> None:
    """Two images, grouped heads, positions of the shortened prompt counted anew."""
    prompt = tiny.prompt(family, images=2, seed=1)
    oracle = Oracle(tiny.build(family), prompt, {**VHR, **options})
    oracle.measure()
    assert all(0 < len(heads) <= 2 for heads in oracle.chosen.values())
    result = run(make_core(family), [ask(prompt, [oracle.entry])])["r"]
    assert heads_of(result) == oracle.chosen
    check(result, oracle.run())


OPTIONS: dict[str, dict[str, Any]] = {
    "question": {"rows": "question+generated"},
    "generated": {"rows": "generated"},
    "prompt": {"rows": "prompt"},
    "last": {"rows": "last"},
    "hidden": {"without_image": "hidden"},
    "hidden last": {"without_image": "hidden", "rows": "last+generated"},
    "plain branch": {"branch_gains": False},
    "outliers too": {"drop_outliers": False},
    "population": {"std": "population"},
    "relative": {"relative": True},
    "one layer": {"layers": [2]},
    "weakened": {"gain": 0.3},
    "removed": {"gain": 0.0},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(name: str, tiny: Any, core_with: Any, ask: Any, run: Any) -> None:
    prompt = tiny.prompt("qwen2_5_vl", images=1, seed=1)
    entry = {**VHR, "layers": [0, 1, 2, 3], **OPTIONS[name]}
    oracle = Oracle(tiny.build("qwen2_5_vl"), prompt, entry)
    oracle.measure()
    wanted = oracle.run()
    result = run(core_with("qwen2_5_vl"), [ask(prompt, [oracle.entry])])["r"]
    assert heads_of(result) == oracle.chosen
    check(result, wanted)
    plain = run(core_with("qwen2_5_vl"), [ask(prompt, [])])["r"]
    assert abs(plain.logprobs[-1].logprob - wanted[-1][1]) > 1e-3, "the option must matter"


def test_options_choose_differently(tiny: Any) -> None:
    """Else the test above would not tell them apart."""
    prompt = tiny.prompt("qwen2_5_vl", images=1, seed=1)
    found = []
    for name in ("hidden", "plain branch", "outliers too", "population", "relative", "generated"):
        entry = {"layers": [0, 1, 2, 3], **OPTIONS[name]}
        oracle = Oracle(tiny.build("qwen2_5_vl"), prompt, entry)
        oracle.measure()
        found.append(oracle.chosen)
    assert all(found.count(chosen) == 1 for chosen in found)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_chunks_and_cached_prefixes(
    family: str, tiny: Any, make_core: Any, ask: Any, run: Any
) -> None:
    """Prompts of 100 tokens in chunks of 16, last rows together; then both from the cache."""
    prompt = tiny.prompt(family, images=2, seed=1, text=75)
    oracle = Oracle(tiny.build(family), prompt, CHUNKED)
    oracle.measure()
    wanted = oracle.run()
    core = make_core(family, max_batched_tokens=16)
    run(core, [ask(prompt, [], "plain")])
    for name in ("cold", "warm"):
        result = run(core, [ask(prompt, [CHUNKED], name)])[name]
        assert heads_of(result) == oracle.chosen
        check(result, wanted)
        assert result.last.cached_tokens == 64, "what no gain reaches is anybody's"


def test_pages_with_gains_are_found_by_nobody(
    tiny: Any, make_core: Any, ask: Any, run: Any
) -> None:
    """The same prompt again, plain, with the same gains and with others."""
    prompt = tiny.prompt("llava", images=1, seed=1, text=75)
    core = make_core("llava", max_batched_tokens=512)
    entries: list[Any] = [[VHR], [VHR], [], [{**VHR, "gain": 3.0}]]
    for number, entry in enumerate(entries):
        result = run(core, [ask(prompt, entry, str(number))])[str(number)]
        alone = run(make_core("llava", prefix_caching=False), [ask(prompt, entry)])["r"]
        assert result.last.cached_tokens == 0
        assert result.tokens == alone.tokens
        assert result.logprobs == alone.logprobs


def test_keys_of_rows_with_gains_name_the_sequence(tiny: Any, ask: Any) -> None:
    prompt = tiny.prompt("llava", images=1, text=75)
    keys = []
    for entries in ([], [CHUNKED], [CHUNKED], [VHR]):
        sequence = Sequence(ask(prompt, entries))
        sequence.tokens += [7] * 64
        PageKeyer(sequence.request).extend(sequence, 128)
        keys.append(sequence.page_keys)
    assert keys[0][0] == keys[1][0] == keys[2][0] != keys[3][0]
    assert len({found[1] for found in keys}) == 4


def crowd(tiny: Any, ask: Any) -> list[Any]:
    """Two rules, several of each, on different prompts, among plain and otherwise edited ones."""
    made = []
    for number, text in enumerate((40, 44)):
        prompt = tiny.prompt("llava", images=1, seed=number, text=text)
        for name, entries in {
            "plain": [],
            "all": [VHR],
            "last": [CHUNKED],
            "other": [{**VHR, "gain": 3.0, "relative": True}],
            "pai": [{"method": "pai", "alpha": 0.7}],
            "both": [{"method": "pai", "alpha": 0.7, "rows": "prompt+generated"}, CHUNKED],
        }.items():
            made.append(ask(prompt, entries, f"{name}-{number}", 16))
    return made


@pytest.mark.parametrize(
    "config", [{}, {"max_batched_tokens": 130}, {"cache_tokens": 64 * 5}], ids=str
)
def test_in_a_crowd_each_gets_what_it_gets_alone(
    config: dict[str, int],
    tiny: Any,
    make_core: Any,
    ask: Any,
    run: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Roomy; with hardly room for one prompt; and preempted after they were measured."""
    requests = crowd(tiny, ask)
    core = make_core("llava", **config)
    preempt, preempted = core._scheduler._preempt, []

    def note(leader: Any) -> None:
        if leader.plan is not None and leader.plan.measured and not leader.siblings:
            preempted.append(leader)
        preempt(leader)

    monkeypatch.setattr(core._scheduler, "_preempt", note)
    results = run(core, requests)
    for request in requests:
        single = run(make_core("llava"), [request])[request.request_id]
        result = results[request.request_id]
        assert result.tokens == single.tokens, request.request_id
        assert result.last.receipt is None or result.last.receipt.heads == single.last.receipt.heads
    assert bool(preempted) == ("cache_tokens" in config)
    stats = core.stats()
    assert (stats.cache_usage, stats.plans) == (0, 0)


def test_a_neighbour_that_is_measured_changes_nothing_bit_for_bit(
    tiny: Any, make_core: Any, ask: Any, run: Any
) -> None:
    prompt = tiny.prompt("llava", images=1, seed=0, text=40)
    found = []
    for entries in ([], [VHR]):
        core = make_core("llava", prefix_caching=False)
        requests = [ask(prompt, [], "plain"), ask(prompt, entries, "other")]
        found.append(run(core, requests)["plain"].logprobs)
    assert found[0] == found[1]


@pytest.mark.parametrize("entry", [VHR, CHUNKED], ids=["all", "last"])
def test_a_step_that_fails_half_way_is_measured_anew(
    entry: Any, tiny: Any, make_core: Any, ask: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gains of the first layers are in the tables when it fails; they must not count twice."""
    prompt = tiny.prompt("llava", images=1, seed=0)
    wanted = run(make_core("llava"), [ask(prompt, [entry])])["r"]
    after, calls = HeadReinforcement.after, []

    def fail_once(self: Any, call: Any, output: torch.Tensor) -> torch.Tensor:
        calls.append(call.layer)
        if len(calls) == len(LAYERS):
            raise RuntimeError("out of luck")
        return after(self, call, output)

    monkeypatch.setattr(HeadReinforcement, "after", fail_once)
    result = run(make_core("llava"), [ask(prompt, [entry])])["r"]
    assert calls == [*LAYERS, *LAYERS]
    assert result.tokens == wanted.tokens
    assert result.logprobs == wanted.logprobs
    assert result.last.receipt.heads == wanted.last.receipt.heads


def pai(
    layer: int, scores: torch.Tensor, image: torch.Tensor, residual: torch.Tensor, length: int
) -> torch.Tensor:
    """PAI with alpha 0.7 in all rows and all layers but the first two."""
    if layer >= 2:
        scores = torch.where(image & scores.isfinite(), scores + 0.7 * scores.abs(), scores)
    return scores.softmax(-1)


PAI = {"method": "pai", "alpha": 0.7, "rows": "prompt+generated"}


@pytest.mark.parametrize("options", [{}, {"without_image": "hidden"}], ids=["deleted", "hidden"])
@pytest.mark.parametrize("order", [0, 1])
def test_with_pai(order: int, options: Any, tiny: Any, make_core: Any, ask: Any, run: Any) -> None:
    """PAI acts in both prompts; in the one without the image it finds no key."""
    prompt = tiny.prompt("llava", images=2, seed=2)
    oracle = Oracle(tiny.build("llava"), prompt, {**VHR, **options}, pai)
    oracle.measure()
    entries = [oracle.entry, PAI] if order else [PAI, oracle.entry]
    result = run(make_core("llava"), [ask(prompt, entries)])["r"]
    assert heads_of(result) == oracle.chosen
    check(result, oracle.run())
    alone = run(make_core("llava"), [ask(prompt, [oracle.entry])])["r"]
    assert abs(alone.logprobs[0].logprob - result.logprobs[0].logprob) > 1e-3


def var(
    layer: int, scores: torch.Tensor, image: torch.Tensor, residual: torch.Tensor, length: int
) -> torch.Tensor:
    """VAR of the entry below, in its only layer; nothing to do where no image is seen."""
    weights = scores.softmax(-1).nan_to_num(0.0)
    if layer != 2 or not image.any():
        return weights
    rms = (residual.square().mean(-1) + 1e-6).sqrt()
    phi = residual[:, [3, 11]].abs().max(-1).values / rms
    sinks = (phi >= 1.0) & (torch.arange(len(phi)) < length)
    vs, vn, ts = sinks & image, ~sinks & image, sinks & ~image
    for head in range(scores.shape[0]):
        for row in range(int(image.nonzero().max()) + 1, scores.shape[1]):
            a = weights[head, row].clone()
            m_vs, m_vn, m_ts = a[vs].sum(), a[vn].sum(), a[ts].sum()
            if vs.any() and m_vs + m_vn >= 0.02 and m_vn >= 0.3 * (m_vs + m_vn):
                a[vs | ts] *= 1 - 0.6
                a[vn] *= 1 + 0.6 * (m_vs + m_ts) / m_vn
            weights[head, row] = a
    return weights


VAR = {
    "method": "var",
    "tau": 1.0,
    "move_fraction": 0.6,
    "min_visual_mass": 0.02,
    "rho": 0.3,
    "sink_dims": [3, 11],
}


@pytest.mark.parametrize("options", [{}, {"without_image": "hidden"}], ids=["deleted", "hidden"])
def test_with_var(options: Any, tiny: Any, make_core: Any, ask: Any, run: Any) -> None:
    """Sinks are found in both prompts; attention moves where the image is seen."""
    prompt = tiny.prompt("llava", images=2, seed=1)
    oracle = Oracle(tiny.build("llava"), prompt, {**VHR, **options}, var)
    oracle.measure()
    result = run(make_core("llava"), [ask(prompt, [VAR, oracle.entry])])["r"]
    assert heads_of(result) == oracle.chosen
    check(result, oracle.run())
    assert result.last.receipt.moved, "the case must exercise both"


def test_gains_multiply_other_gains(tiny: Any, make_core: Any, ask: Any, run: Any) -> None:
    """Halved outputs are what is measured and amplified."""
    prompt = tiny.prompt("llava", images=1, seed=2)
    request = ask(prompt, [VHR])
    sites = tuple((layer, (0, 1, 2, 3)) for layer in range(4))
    halved = HeadEdit(sites, tuple(Phase), 0.5)
    plan = replace(request.plan, gains=(halved,))
    (branch,) = request.branches
    branch = with_fields(
        branch, plan=deleted_plan(plan, [(i.start, i.start + i.length) for i in prompt.images])
    )
    request = with_fields(request, plan=plan, branches=(branch,))
    oracle = Halved(tiny.build("llava"), prompt, VHR)
    oracle.measure()
    result = run(make_core("llava"), [request])["r"]
    assert heads_of(result) == oracle.chosen
    check(result, oracle.run())


class Halved(Oracle):
    """A model whose head outputs are half as large."""

    def _attention(self, module: Any, q: Any, k: Any, v: Any, mask: Any, **kw: Any) -> Any:
        return super()._attention(module, q, k, 0.5 * v, mask, **kw)


def test_the_report(tiny: Any, make_core: Any, ask: Any, run: Any) -> None:
    """VHD of all layers and T-VHD, of the model as it is when nothing is amplified."""
    prompt = tiny.prompt("llava", images=1, seed=2)
    entry = {**VHR, "gain": 1.0, "diagnose": 3}
    plain = run(make_core("llava"), [ask(prompt, [])])["r"]
    result = run(make_core("llava"), [ask(prompt, [entry])])["r"]
    assert result.logprobs == plain.logprobs
    heads = result.last.receipt.heads
    assert heads.selected == ()
    oracle = Oracle(tiny.build("llava"), prompt, entry)
    with torch.no_grad():
        oracle.forward(list(prompt.tokens), gains=False)
        with_image = dict(oracle.seen)
        oracle.forward(oracle._bare(), gains=False, bare=True)
    vhd = torch.stack([(with_image[i] - oracle.seen[i]).norm(dim=-1) for i in range(4)])
    np.testing.assert_allclose(heads.divergence, vhd, atol=1e-5)
    assert heads.total == pytest.approx(sum(sum(sorted(row)[-3:]) for row in vhd.tolist()), 1e-5)


def test_the_report_beside_gains(tiny: Any, make_core: Any, ask: Any, run: Any) -> None:
    """It looks at every layer, and changes nothing."""
    prompt = tiny.prompt("llava", images=1, seed=2)
    plain, shown = (
        run(make_core("llava"), [ask(prompt, [{**VHR, **options}])])["r"]
        for options in ({}, {"diagnose": 4})
    )
    assert shown.tokens == plain.tokens
    assert shown.logprobs == plain.logprobs
    heads = shown.last.receipt.heads
    assert heads.selected == plain.last.receipt.heads.selected
    assert plain.last.receipt.heads.total is None
    assert all(value > 0 for row in heads.divergence for value in row)


def test_a_prompt_too_long_for_a_step_is_refused(tiny: Any, make_core: Any, ask: Any) -> None:
    prompt = tiny.prompt("llava", images=1, seed=2, text=40)
    core = make_core("llava", max_batched_tokens=64)
    output = core.submit(ask(prompt, [VHR]))
    assert output.finish_reason is FinishReason.ERROR
    assert "one step" in output.error
    assert core.submit(ask(prompt, [CHUNKED])) is None
