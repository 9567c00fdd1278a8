"""Steering at every site, along subspaces and by maps, equals hooks on transformers' own modules.

The oracle of steered.py writes the formulas out in float64; the engine chunks, caches and batches.
"""

from typing import Any

import pytest
import torch

from saccade_server.engine.decode import StepVariant
from saccade_testing import steered, tiny
from saccade_testing.engine import core_with, make_request, run
from saccade_testing.oracle import check

SITES = ("residual", "attention_output", "mlp_output")


@pytest.fixture
def family(decoder_family: str) -> str:
    """Every family that has a decoder of its own."""
    return decoder_family


def rows_at(layer: int) -> list[int]:
    """Which vectors of the maps in steered.py are a layer's."""
    return {1: [1], 3: [0, 2]}[layer]


def subspace(layer: int, h: torch.Tensor) -> torch.Tensor:
    span = steered.SPAN[rows_at(layer)]
    return h - h @ torch.linalg.pinv(span) @ span


def low_rank(layer: int, h: torch.Tensor) -> torch.Tensor:
    at = rows_at(layer)
    return h + (h @ steered.READ[at].T + steered.SIGMA[at]) @ steered.WRITE[at]


def diagonal(layer: int, h: torch.Tensor) -> torch.Tensor:
    at = steered.MAPPED.index(layer)
    return h + 0.5 * (steered.SCALE[at] * h + steered.SHIFT[at] - h)


MAPS: dict[str, tuple[dict[str, Any], str, Any]] = {
    "subspace": ({"op": "project_out"}, "SUBSPACES", subspace),
    "low rank": ({"op": "affine"}, "LOW_RANK", low_rank),
    "diagonal": ({"op": "affine", "coefficient": 0.5}, "DIAGONAL", diagonal),
}


class At:
    """An edit of some layers at one site, as the oracle wants it."""

    def __init__(self, site: str, layers: tuple[int, ...], edit: Any) -> None:
        self._site, self._layers, self._edit = site, layers, edit

    def hooks(self) -> dict[str, Any]:
        return {"residual": self.residual} if self._site == "residual" else {"added": self.added}

    def residual(self, layer: int, h: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return h + rows * (self._edit(layer, h) - h) if layer in self._layers else h

    def added(self, site: str, layer: int, h: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return self.residual(layer, h, rows) if site == self._site else h


def check_all(at: At, entry: dict[str, Any], family: str) -> None:
    """In chunks and whole, cold and from cached pages, in padded steps and ordinary ones."""
    prompt = tiny.prompt(family, images=int(family in tiny.IMAGE_FAMILIES), seed=4, text=70)
    rows = entry["rows"]
    wanted = steered.Oracle(tiny.build(family), rows, **at.hooks()).run(prompt, 4)
    plain = steered.Oracle(tiny.build(family), rows).run(prompt, 4)
    assert wanted[-1] != plain[-1], "the case must exercise the edit"
    for settings in ({"max_batched_tokens": 24}, {"padded_decode": True, "overlap": True}):
        core = core_with(family, **settings)
        plan = steered.plan_for(core, prompt, [entry])
        for turn in ("cold", "warm"):
            request = make_request(prompt, turn, plan, 4, logprobs=1, ignore_eos=True)
            result = run(core, [request])[turn]
            check(result, wanted)
        assert result.last.cached_tokens >= 64


@pytest.mark.parametrize("site", ["attention_output", "mlp_output"])
def test_vectors_at_outputs(family: str, site: str) -> None:
    """Published as VTI: of the norm of what is added, and kept."""
    layers = (0, 2)
    fields = {"coefficient": 6, "unit": "rms", "keep_norm": True, "rows": "prompt+generated"}
    entry = {"method": "steering", "artifact": steered.STEER.digest, "site": site, **fields}
    edit = steered.keeping_norm(lambda m, v: m + 6 * steered.rms(m) * steered.unit(v))
    at = At(site, layers, lambda layer, m: edit(m, steered.VECTORS[layers.index(layer)]))
    entry["layers"] = list(layers)
    check_all(at, entry, family)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("rows", ["prompt+generated", "last+generated"])
def test_maps(name: str, site: str, rows: str) -> None:
    fields, artifact, edit = MAPS[name]
    digest = getattr(steered, artifact).digest
    entry = {"method": "steering", "artifact": digest, "site": site, "rows": rows, **fields}
    at = At(site, steered.MAPPED, lambda layer, h: edit(layer, h))
    family = "gemma3_text" if rows == "last+generated" else "llava"
    check_all(at, entry, family)


@pytest.mark.parametrize("site", ["attention_output", "mlp_output"])
def test_bounds_choose_rows(site: str) -> None:
    layers, v = (0, 2), [steered.unit(vector) for vector in steered.VECTORS]
    fields = {"op": "project_out", "only_below": 0.02, "rows": "prompt+generated"}
    entry = {"method": "steering", "artifact": steered.STEER.digest, "site": site, **fields}
    entry["layers"] = list(layers)
    chosen: list[torch.Tensor] = []

    def edit(layer: int, m: torch.Tensor) -> torch.Tensor:
        part = steered.along(m, v[layers.index(layer)])
        chosen.append(part <= 0.02)
        return m - chosen[-1] * part * v[layers.index(layer)]

    check_all(At(site, layers, edit), entry, "qwen3")
    found = torch.cat(chosen)
    assert found.any()
    assert not found.all()


@pytest.mark.parametrize("site", SITES)
def test_a_function_vector(site: str) -> None:
    entry = {"method": "function_vector", "artifact": steered.TASK.digest, "site": site}
    entry |= {"layer": 1, "coefficient": 0.5, "rows": "last+generated"}
    at = At(site, (2 if site == "residual" else 1,), lambda _, h: h + 0.5 * steered.VECTORS[0])
    check_all(at, entry, "mistral")


def test_sites_and_methods_share_a_step() -> None:
    """Requests at each site, maps and plain ones in one batch answer as they do alone."""
    prompt = tiny.prompt("llama", seed=2, text=30)
    entries: dict[str, list[dict[str, Any]]] = {"plain": []}
    scale = {"method": "head_scale", "gain": 2, "layers": [1]}
    for site in SITES:
        base = {"site": site, "rows": "prompt+generated"}
        entries[site] = [{**steered.steering("add rms", "prompt+generated"), **base, "layers": [2]}]
        for name, (fields, artifact, _) in MAPS.items():
            digest = getattr(steered, artifact).digest
            entry = {"method": "steering", "artifact": digest, **base, **fields}
            entries[f"{name} {site}"] = [
                entry,
                entries[site][0],
                scale,
            ]
    entries["head"] = [scale]

    def asked(core: Any) -> list[Any]:
        return [
            make_request(
                prompt,
                name,
                steered.plan_for(core, prompt, made) if made else None,
                5,
                ignore_eos=True,
                logprobs=1,
            )
            for name, made in entries.items()
        ]

    alone = core_with("llama", prefix_caching=False)
    wanted = {}
    for request in asked(alone):
        wanted |= run(alone, [request])
    for settings in ({}, {"padded_decode": True, "overlap": True}):
        core = core_with("llama", **settings)
        found = run(core, asked(core))
        for name, result in found.items():
            assert result.tokens == wanted[name].tokens, name
            assert result.last.receipt == wanted[name].last.receipt
            for own, other in zip(result.logprobs, wanted[name].logprobs, strict=True):
                assert own.logprob == pytest.approx(other.logprob, abs=1e-9)
    assert len({tuple(result.tokens) for result in wanted.values()}) > 6


def test_captured_steps_reach_no_further_than_they_must(monkeypatch: pytest.MonkeyPatch) -> None:
    core, prompt = core_with("llama", padded_decode=True, overlap=False), tiny.prompt("llama")
    seen: list[int] = []
    play = core._runner._decoder.play

    def note(variant: StepVariant) -> None:
        seen.append(int(variant.reach))
        play(variant)

    monkeypatch.setattr(core._runner._decoder, "play", note)
    for reach, site in ((0, None), (1, "residual"), (2, "attention_output"), (2, "mlp_output")):
        entry = {**steered.steering("add", "generated"), "site": site, "layers": [2]}
        plan = None if site is None else steered.plan_for(core, prompt, [entry])
        run(core, [make_request(prompt, "r", plan, 3, ignore_eos=True)])
        assert set(seen) == {reach}
        seen.clear()
