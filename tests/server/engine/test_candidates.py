"""Saliency through the engine equals the policy written out over whole-sequence gradients."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.edits import ResidualEdit
from saccade_interventions.phases import Phase, parse_rows
from saccade_interventions.plan import Plan
from saccade_interventions.rules import SaliencyRule
from saccade_kernels.controls import ControlShape
from saccade_server.engine.request import FinishReason
from saccade_testing import held, oracle, tiny
from saccade_testing.engine import MakeCore, make_request, run
from saccade_testing.oracle import attend

SITES = tuple((layer, (0, 1, 2, 3)) for layer in (1, 2, 3))
RULE = SaliencyRule(
    layers=(1, 2),
    candidates=5,
    draws=3,
    alpha=0.95,
    window=3,
    warmup=1,
    fallback="most_salient",
)
STEPS, EOS = 10, 2
Scores = Callable[[int, torch.Tensor], torch.Tensor]


def plan_of(prompt: Any, rule: SaliencyRule | None = RULE, edits: Any = None) -> Plan:
    question = max((i.start + i.length for i in prompt.images), default=0)
    builder = PlanBuilder(ControlShape(4, 4, 16), len(prompt.tokens), question)
    if edits is not None:
        edits(builder)
    if rule is not None:
        builder.rule(rule)
    return builder.build()


class Oracle:
    """sgrs.md written out: everything is recomputed for each token, gradients by autograd."""

    def __init__(self, model: Any, scores: Scores = lambda layer, z: z) -> None:
        self.model = model
        self.scores = scores
        self.weights: list[torch.Tensor] = []
        attend(model, self._weigh)

    def _weigh(self, layer: int, scores: torch.Tensor) -> torch.Tensor:
        hidden = scores == -torch.inf
        edited = self.scores(layer, scores.masked_fill(hidden, 0.0))
        self.weights.append(edited.masked_fill(hidden, -torch.inf).softmax(-1))
        return self.weights[-1]

    def logits(self, prompt: Any, tokens: list[int]) -> torch.Tensor:
        self.weights.clear()
        return oracle.logits(self.model, prompt, tokens)

    def saliency(self, loss: torch.Tensor, layers: Any, start: int, end: int) -> float:
        grads = torch.autograd.grad(loss, self.weights, retain_graph=True)
        total = 0.0
        for layer in layers:
            row = (self.weights[layer].detach() * grads[layer])[:, -1].abs().mean(0)
            total += float((row / row.norm())[start:end].mean())
        return total / len(layers)

    def run(
        self,
        prompt: Any,
        rule: SaliencyRule,
        temperature: float = 0,
        seed: int = 0,
        mask: Callable[[list[int]], torch.Tensor] | None = None,
    ) -> Any:
        """Tokens, their log-probabilities, and counts of draws, rejections and fallbacks.

        Candidates are among those to which ``mask(answer)`` adds 0, not -inf; then an end ends.
        """
        tokens, history, found = list(prompt.tokens), [], []
        counts = {"draws": 0, "rejections": 0, "fallbacks": 0}
        first = len(prompt.tokens)
        if rule.region == "after_image":
            first = max(i.start + i.length for i in prompt.images)
        for position in range(STEPS):
            logprobs = self.logits(prompt, tokens).log_softmax(-1)
            drawn = logprobs + (0 if mask is None else mask(tokens[len(prompt.tokens) :]))
            pool = drawn.topk(rule.candidates).indices.tolist()
            pool = [token for token in pool if drawn[token] > -torch.inf]
            end = len(tokens) if rule.with_self else len(tokens) - 1
            scores = {}
            if end > first:
                scale = (end - first) ** 0.5 if rule.normalisation == "cosine" else 1.0
                scores = {
                    c: scale * self.saliency(-logprobs[c], rule.layers, first, end) for c in pool
                }
            tested = scores and len(history) >= rule.warmup
            least = rule.alpha * np.mean(history[-rule.window :]) if tested else None
            left, chosen = list(pool), None
            for draw in range(min(rule.draws, len(pool))):
                at = 0
                if temperature:
                    weights = (logprobs[left].detach() / temperature).softmax(-1).cumsum(-1)
                    counter = np.array([position, draw, 0, 0], dtype=np.uint64)
                    bits = np.random.Philox(key=seed, counter=counter)
                    number = np.random.Generator(bits).random()
                    at = int((weights <= number).sum())
                counts["draws"] += 1
                token = left.pop(at)
                if least is None or token == EOS or scores[token] >= least:
                    chosen = token
                    break
                counts["rejections"] += 1
            accepted = chosen is not None
            if chosen is None:
                counts["fallbacks"] += 1
                likely = rule.fallback == "likeliest"
                chosen = pool[0] if likely else max(pool, key=lambda c: scores[c])
            if scores and (accepted or rule.history == "chosen"):
                history.append(scores[chosen])
            found.append((chosen, float(logprobs[chosen].detach())))
            tokens.append(chosen)
            if mask is not None and chosen == EOS:
                break
        return found, {name: value for name, value in counts.items() if value}


def check(result: Any, wanted: Any) -> None:
    found, counts = wanted
    assert result.tokens == [token for token, _ in found]
    logprobs = [entry.logprob for entry in result.logprobs]
    np.testing.assert_allclose(logprobs, [value for _, value in found], atol=2e-6)
    assert {c.name: c.value for c in result.last.receipt.counters} == counts


SAMPLING = {"greedy": {}, "sampled": {"temperature": 1.3, "seed": 5}}


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("llama", "greedy"),
        ("qwen3", "sampled"),
        ("llava", "sampled"),
        ("qwen2_5_vl", "greedy"),
        ("qwen3_vl", "sampled"),
    ],
)
def test_tokens_and_counts(family: str, kind: str, make_core: MakeCore) -> None:
    prompt, sampling = tiny.prompt(family, images=1, seed=3), SAMPLING[kind]
    request = make_request(
        prompt, "r", plan_of(prompt), STEPS, logprobs=2, ignore_eos=True, **sampling
    )
    result = run(make_core(family), [request])["r"]
    wanted = Oracle(tiny.build(family)).run(prompt, RULE, **sampling)
    assert wanted[1].get("rejections"), "the case must reject"
    check(result, wanted)
    assert all(len(entry.top) == 2 for entry in result.logprobs)


@pytest.mark.parametrize("stages", [True, False])
@pytest.mark.parametrize("kind", SAMPLING)
def test_candidates_are_those_that_a_grammar_leaves(
    kind: str, stages: bool, make_core: MakeCore
) -> None:
    """Their saliency is what it is without one, and so are their log-probabilities.

    Where stages judge them, behind them, or where log-probabilities have the step draw without.
    """
    expression = "(ab|12|[c-h]{2}|true){3,4}[.,]"
    prompt, sampling = tiny.prompt("llava", images=1, seed=3), SAMPLING[kind]
    asked = {"ignore_eos": True, **sampling} | ({} if stages else {"logprobs": 0})
    requests = [
        held.held(make_request(prompt, name, plan_of(prompt, rule), STEPS, **asked), expression)
        for name, rule in (("few", RULE), ("many", replace(RULE, candidates=11)))
    ]
    plain = make_request(prompt, "plain", plan_of(prompt), STEPS, ignore_eos=True)
    for requests_now in (requests[:1], [requests[0], plain], [requests[1], plain]):
        found = run(make_core("llava", vocabulary=held.vocabulary()), requests_now)
        for request in requests_now[:1]:
            rule = request.plan.rule(SaliencyRule)
            model = Oracle(tiny.build("llava"))
            wanted, counts = model.run(
                prompt, rule, **sampling, mask=lambda answer: held.mask_of(expression, answer)
            )
            result = found[request.request_id]
            assert counts.get("rejections"), "the case must reject"
            if stages:
                assert result.tokens == [token for token, _ in wanted]
                assert {c.name: c.value for c in result.last.receipt.counters} == counts
            else:
                check(result, (wanted, counts))


VARIANTS = {
    "after the image": {"region": "after_image"},
    "without itself": {"with_self": False},
    "no more draws than candidates": {"candidates": 2, "draws": 5, "alpha": 1.2},
    "one layer, the last": {"layers": (3,)},
    "one layer, the first": {"layers": (0,)},
    "the paper's mean and history": {"normalisation": "mean", "history": "accepted"},
    "back to the likeliest": {"fallback": "likeliest", "alpha": 1.2},
    "after a warm-up longer than the window": {"warmup": 4},
}


@pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS)
def test_variants(change: Any, make_core: MakeCore) -> None:
    rule = replace(RULE, **change)
    prompt = tiny.prompt("llava", images=1, seed=4)
    request = make_request(prompt, "r", plan_of(prompt, rule), STEPS, logprobs=0, ignore_eos=True)
    check(run(make_core("llava"), [request])["r"], Oracle(tiny.build("llava")).run(prompt, rule))


def test_the_gradient_goes_through_edits_of_scores(make_core: MakeCore) -> None:
    prompt = tiny.prompt("llava", images=1, seed=3)
    image = prompt.images[0]
    span = (image.start, image.start + image.length)
    rows = "last+generated"

    def edits(builder: PlanBuilder) -> None:
        builder.score(SITES, [builder.tag([span])], parse_rows(rows), absolute=0.8, bias=1.0)

    def scores(layer: int, z: torch.Tensor) -> torch.Tensor:
        if layer == 0:
            return z
        edited = torch.zeros(z.shape[1:], dtype=torch.bool)
        edited[len(prompt.tokens) - 1 :, slice(*span)] = True
        return torch.where(edited, z + 0.8 * z.abs() + 1.0, z)

    request = make_request(
        prompt, "r", plan_of(prompt, RULE, edits), STEPS, logprobs=0, ignore_eos=True
    )
    wanted = Oracle(tiny.build("llava"), scores).run(prompt, RULE)
    assert wanted != Oracle(tiny.build("llava")).run(prompt, RULE)
    check(run(make_core("llava"), [request])["r"], wanted)


def test_the_gradient_goes_through_edits_of_the_residual(make_core: MakeCore) -> None:
    """Entering the lowest judged layer, one above, and leaving the last."""
    prompt = tiny.prompt("llama", seed=3)
    direction = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
    direction /= np.linalg.norm(direction)
    places = (0, 1, 3, 4)

    def edits(builder: PlanBuilder) -> None:
        name = builder.vectors(direction)
        for layer in places:
            builder.residual(ResidualEdit(layer, (Phase.GENERATED,), name, 0, scale=0.5, shift=1.0))

    def edit(hidden: torch.Tensor) -> torch.Tensor:
        v = torch.from_numpy(direction[0]).double()
        p = hidden @ v
        rows = torch.arange(hidden.shape[1]) >= len(prompt.tokens)
        change = torch.where(rows, -0.5 * p + 1.0, 0.0)
        return hidden + change[..., None] * v

    model = tiny.build("llama")
    layers = model.get_decoder().layers
    for place in places[:-1]:
        layers[place].register_forward_pre_hook(lambda m, args: (edit(args[0]), *args[1:]))
    layers[-1].register_forward_hook(lambda m, args, output: edit(output))
    request = make_request(
        prompt, "r", plan_of(prompt, RULE, edits), STEPS, logprobs=0, ignore_eos=True
    )
    wanted = Oracle(model).run(prompt, RULE)
    assert wanted != Oracle(tiny.build("llama")).run(prompt, RULE)
    check(run(make_core("llama"), [request])["r"], wanted)


def test_without_rejections_it_is_plain_sampling_from_the_likeliest(make_core: MakeCore) -> None:
    """What the published code does, see sgrs.md section 5."""
    prompt = tiny.prompt("llama", seed=3)
    sampling = {"temperature": 1.0, "seed": 9, "ignore_eos": True}
    rule = replace(RULE, alpha=1e-9)
    requests = [
        make_request(prompt, "sgrs", plan_of(prompt, rule), 30, **sampling),
        make_request(prompt, "plain", None, 30, top_k=5, **sampling),
    ]
    results = run(make_core("llama"), requests)
    assert results["sgrs"].tokens == results["plain"].tokens
    counts = {c.name: c.value for c in results["sgrs"].last.receipt.counters}
    assert counts == {"draws": 30}


@pytest.mark.parametrize("sampling", SAMPLING.values(), ids=SAMPLING)
def test_candidates_come_from_what_the_request_draws_from(
    sampling: Any, make_core: MakeCore
) -> None:
    """A filter that leaves one token leaves one candidate; a ban keeps a token out of the pool."""
    prompt = tiny.prompt("llama", seed=3)
    plan = plan_of(prompt, replace(RULE, alpha=10.0))
    core = make_core("llama")

    def tokens(chosen: Any, **more: Any) -> list[int]:
        settings = {"ignore_eos": True, **sampling, **more}
        return run(core, [make_request(prompt, "r", chosen, 12, **settings)])["r"].tokens

    free = tokens(plan)
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert tokens(plan, **narrow) == tokens(None, **narrow) != free
    banned = tokens(plan, logit_bias=dict.fromkeys(free, -100.0))
    assert not set(banned) & set(free)


def test_an_answer_can_end(make_core: MakeCore) -> None:
    """A token that was rejected is accepted where it ends the answer, or stands for no text."""
    prompt = tiny.prompt("llama", seed=3)
    rule = replace(RULE, alpha=10.0)
    core = make_core("llama")

    def answer(rule: SaliencyRule, **settings: Any) -> Any:
        settings = {"logprobs": 1, "ignore_eos": True, **settings}
        return run(core, [make_request(prompt, "r", plan_of(prompt, rule), 12, **settings)])["r"]

    free = answer(rule)
    likeliest = [entry.top[0][0] for entry in free.logprobs]
    pairs = zip(likeliest, free.tokens, strict=True)
    at = next(i for i, (top, _) in enumerate(pairs) if top not in free.tokens[: i + 1])
    rejected = likeliest[at]
    ended = answer(rule, stop_token_ids=(rejected,))
    assert ended.tokens == [*free.tokens[:at], rejected]
    assert ended.last.finish_reason is FinishReason.STOP
    special = answer(replace(rule, exempt=(rejected,)))
    assert special.tokens[: at + 1] == ended.tokens
