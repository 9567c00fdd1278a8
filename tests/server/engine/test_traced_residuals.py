"""The logit lens, entropies and projections of traces equal formulas on transformers' modules."""

from typing import Any

import numpy as np
import pytest
import torch

from saccade_server.engine.request import Array, GenerateRequest
from saccade_server.engine.traces import exits
from saccade_server.engine.traces.data import (
    AnyReading,
    EntropyReading,
    LensReading,
    ProjectionReading,
)
from saccade_testing import readings, steered, tiny
from saccade_testing.engine import core_with, make_request, run
from saccade_testing.readings import (
    SETTINGS,
    TOKENS,
    Modules,
    all_rows,
    answer_rows,
    core_for,
    prompts_of,
    with_trace,
)
from saccade_testing.tiny import TinyPrompt

SITES = ("residual", "attention_output", "mlp_output")
DIRECTIONS = np.random.default_rng(5).normal(size=(3, 64)).astype(np.float32)
LAYERS: dict[str, tuple[int, ...]] = {
    "residual": (0, 1, 4),
    "attention_output": (0, 2, 3),
    "mlp_output": (1, 3),
}


@pytest.fixture
def family(decoder_family: str) -> str:
    """Every family that has a decoder of its own."""
    return decoder_family


def everything(rows: tuple[int, int]) -> list[AnyReading]:
    made: list[AnyReading] = [
        ProjectionReading(
            name=site,
            rows=rows,
            layers=LAYERS[site],
            site=site,  # type: ignore[arg-type]
            vectors=Array.pack(DIRECTIONS[: 2 if site == "mlp_output" else 3]),
        )
        for site in SITES
    ]
    made += [
        LensReading(name="lens", rows=rows, layers=(0, 2, 4), top=7),
        LensReading(name="few", rows=(rows[1] - 2, rows[1]), layers=(0, 2, 4), top=2),
        EntropyReading(name="entropies", rows=rows, layers=(1, 2, 3)),
        EntropyReading(name="entropy", rows=rows),
    ]
    return made


def request_for(prompt: TinyPrompt, name: str, rows: tuple[int, int], **more: Any) -> Any:
    request = make_request(prompt, name, max_tokens=TOKENS, ignore_eos=True, **more)
    return with_trace(request, *everything(rows))


def check(
    model: Any, trace: dict[str, Any], modules: Modules, rows: tuple[int, int], atol: float = 1e-9
) -> None:
    """The arrays of :func:`everything` against what a run left in ``modules``."""
    place = slice(*rows)
    for site in SITES:
        vectors = torch.from_numpy(DIRECTIONS[: 2 if site == "mlp_output" else 3]).double()
        wanted = [modules.at(site, layer)[place] @ vectors.T for layer in LAYERS[site]]
        np.testing.assert_allclose(trace[site], torch.stack(wanted, 1), atol=atol)
    norm, head = model.get_decoder().norm, model.get_output_embeddings()
    residuals = [modules.residuals[layer] for layer in range(5)]
    with torch.no_grad():
        logs = [head(norm(residual)).log_softmax(-1)[place] for residual in residuals]
    order = [some.sort(-1, descending=True) for some in logs]
    lens = [order[layer] for layer in (0, 2, 4)]
    np.testing.assert_array_equal(
        trace["lens.tokens"], torch.stack([o.indices[:, :7] for o in lens], 1)
    )
    np.testing.assert_allclose(
        trace["lens.logprobs"], torch.stack([o.values[:, :7] for o in lens], 1), atol=atol
    )
    np.testing.assert_array_equal(trace["few.tokens"], trace["lens.tokens"][-2:, :, :2])
    np.testing.assert_array_equal(trace["few.logprobs"], trace["lens.logprobs"][-2:, :, :2])
    entropies = [-(some.exp() * some).sum(-1) for some in logs]
    np.testing.assert_allclose(trace["entropies"], torch.stack(entropies[1:4], 1), atol=atol)
    np.testing.assert_allclose(trace["entropy"], entropies[4], atol=atol)


@pytest.mark.parametrize("setting", ["chunks", "as on a GPU"])
def test_readings_of_every_family(family: str, setting: str) -> None:
    """Of all rows, or of an answer's: of image features too, with added ones and all."""
    prompts = prompts_of(family)
    core = core_for(setting, prompts, family)
    rows = [all_rows(prompts[0]), answer_rows(prompts[1])]
    requests = [
        request_for(prompt, str(n), some)
        for n, (prompt, some) in enumerate(zip(prompts, rows, strict=True))
    ]
    results = run(core, requests)
    model = tiny.build(family)
    for n, (prompt, some) in enumerate(zip(prompts, rows, strict=True)):
        modules, result = Modules(model), results[str(n)]
        modules.run(prompt, result.tokens)
        check(model, result.trace, modules, some)


def steered_request(core: Any, prompt: TinyPrompt, name: str) -> GenerateRequest:
    """Directions added before layers and to what layers add, from the last prompt row on."""
    entries = [
        {"method": "steering", "artifact": steered.STEER.digest, "coefficient": 0.7},
        {
            "method": "steering",
            "artifact": steered.STEER.digest,
            "coefficient": 0.5,
            "site": "mlp_output",
            "layers": [2],
        },
        {**steered.MAP, "site": "attention_output"},
    ]
    plan = steered.plan_for(core, prompt, entries)
    return request_for(prompt, name, all_rows(prompt), plan=plan)


def steered_model(prompt: TinyPrompt) -> Any:
    """The same by hooks."""

    def residual(index: int, h: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        known = steered.RESIDUALS
        return h + rows * 0.7 * steered.VECTORS[known.index(index)] if index in known else h

    def added(site: str, index: int, h: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        if (site, index) == ("mlp_output", 2):
            return h + rows * 0.5 * steered.VECTORS[1]
        if site == "mlp_output" or index not in steered.MAPPED:
            return h
        places = [0, 2] if index == 3 else [1]
        read, write = steered.READ[places], steered.WRITE[places]
        return h + rows * ((h @ read.T + steered.SIGMA[places]) @ write)

    oracle = steered.Oracle(tiny.build("llava"), "last+generated", residual, added=added)
    oracle.length = len(prompt.tokens)
    return oracle.model


@pytest.mark.parametrize("setting", SETTINGS)
def test_edits_in_force_are_read(setting: str) -> None:
    """Beside a plain request and one with other edits; the tokens are those without a trace."""
    prompts = prompts_of("llava", 3)
    core = core_for(setting, prompts, "llava")
    plain = request_for(prompts[0], "plain", all_rows(prompts[0]))
    steered_one = steered_request(core, prompts[1], "steered")
    results = run(core, [plain, steered_one, make_request(prompts[2], "other", max_tokens=TOKENS)])
    assert (core.stats().preemptions > 0) == (setting == "preempted")
    models = {"plain": tiny.build("llava"), "steered": steered_model(prompts[1])}
    for (name, model), prompt in zip(models.items(), prompts, strict=False):
        modules, result = Modules(model), results[name]
        logits = modules.run(prompt, result.tokens)
        assert result.tokens == logits[len(prompt.tokens) - 1 :].argmax(-1).tolist()
        atol = 1e-9 if name == "plain" else 1e-4  # tables hold float32
        check(tiny.build("llava"), result.trace, modules, all_rows(prompt), atol)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_neighbour_notices_nothing(setting: str) -> None:
    """Same tokens, same log-probabilities, bit for bit; edited rows among them."""

    def crowd(read: bool) -> dict[str, Any]:
        other, *prompts = prompts_of("llava", 3)
        core = core_for(setting, [other, *prompts], "llava")
        requests = [
            make_request(prompts[0], "plain", None, 8, ignore_eos=True, logprobs=2),
            steered_request(core, prompts[1], "steered"),
            request_for(other, "other", all_rows(other)),
        ]
        if not read:
            requests = [readings.replace(request, trace=None) for request in requests]
        results = run(core, requests)
        return {n: (r.tokens, r.logprobs) for n, r in results.items()}

    assert crowd(True) == crowd(False)


def test_rows_are_projected_as_soon_as_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts of at most a few layers, and of the rest behind the step."""
    monkeypatch.setattr(exits, "AT_ONCE", 64)
    seen: list[int] = []
    inner = exits.ExitWatch._project

    def note(self: Any) -> None:
        seen.append(sum(len(rows) for _, _, rows in self._waiting))
        inner(self)

    monkeypatch.setattr(exits.ExitWatch, "_project", note)
    prompt = tiny.prompt("llama", text=33)
    core = core_with("llama")
    reading = EntropyReading(name="entropies", rows=all_rows(prompt), layers=(0, 1, 2, 3, 4))
    request = with_trace(make_request(prompt, max_tokens=2), reading)
    result = run(core, [request])["r"]
    length = len(prompt.tokens)
    assert seen[:3] == [2 * length, 2 * length, length]
    assert result.trace["entropies"].shape == (length + 1, 5)


BAD: dict[str, AnyReading] = {
    "it has no layers": LensReading(name="a", rows=(0, 3)),
    "top must be 1 to": LensReading(name="a", rows=(0, 3), layers=(1,), top=0),
    "its vectors are not": ProjectionReading(
        name="a", rows=(0, 3), layers=(1,), vectors=Array.pack(DIRECTIONS[:, :63])
    ),
    "are not float32": ProjectionReading(
        name="a", rows=(0, 3), layers=(1,), vectors=Array.pack(DIRECTIONS.astype(np.float64))
    ),
    "directions, 64]": ProjectionReading(
        name="a", rows=(0, 3), layers=(1,), vectors=Array.pack(DIRECTIONS[:0])
    ),
    "there is no mlp_output": ProjectionReading(
        name="a", rows=(0, 3), layers=(1, 4), site="mlp_output", vectors=Array.pack(DIRECTIONS)
    ),
    "a: it has no": ProjectionReading(name="a", rows=(0, 3), vectors=Array.pack(DIRECTIONS)),
}


@pytest.mark.parametrize("words", BAD)
def test_what_is_not_there_is_refused(words: str) -> None:
    core = core_with("llama")
    output = core.submit(with_trace(make_request(tiny.prompt("llama")), BAD[words]))
    assert output is not None
    assert words in (output.error or "")


def test_directions_are_dropped_with_their_sequence() -> None:
    core, prompt = core_with("llama"), tiny.prompt("llama")
    run(core, [request_for(prompt, "r", all_rows(prompt))])
    (handler,) = (h for h in core._runner.rules if h.kind.__name__ == "Trace")
    readers = handler._readers.values()  # type: ignore[attr-defined]
    assert all(not getattr(reader, "_directions", None) for reader in readers)
