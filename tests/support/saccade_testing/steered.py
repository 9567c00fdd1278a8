"""Steering written out: artifacts, their methods' formulas, and generation under them.

The oracle recomputes the whole sequence for every token, in float64 with eager attention; its hooks
do literally what a method's paper says.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from saccade_interventions.artifacts import Artifact, read_artifact, write_artifact
from saccade_interventions.plan import Plan
from saccade_server.engine.core import EngineCore
from saccade_server.engine.request import GenerateRequest
from saccade_testing import engine, tiny
from saccade_testing.engine import make_request
from saccade_testing.oracle import Said, greedy, logits
from saccade_testing.tiny import TinyPrompt

STEPS = 6
LAYERS, HEADS, DIM, HIDDEN = 4, 4, 16, 64
MODEL = "sha256:" + "a" * 64
RNG = np.random.default_rng(3)
Rows = torch.Tensor  # float [T, 1]: 1 for rows that are edited


def random_vectors(count: int, size: int) -> torch.Tensor:
    """As an artifact stores them."""
    return torch.from_numpy(RNG.normal(size=(count, size)).astype(np.float32)).double()


RESIDUALS = (0, 2, 4)
VECTORS = random_vectors(3, HIDDEN)
PAIRS = ((2, 3), (1, 0), (2, 1))
HEAD_VECTORS = random_vectors(3, DIM)
SIGMA = torch.tensor([0.5, 1.5, 1.0], dtype=torch.float64)
MEANS = random_vectors(LAYERS * HEADS, DIM).reshape(LAYERS, HEADS, DIM)


def made(kind: str, **tensors: Any) -> Artifact:
    arrays = {name: np.asarray(values) for name, values in tensors.items()}
    return read_artifact(write_artifact(kind, MODEL, arrays))


STEER = made("vectors", vectors=VECTORS, layers=RESIDUALS)
TASK = made("vectors", vectors=VECTORS[:1], layers=(3,))
TRUTH = made("head_vectors", heads=PAIRS, vectors=HEAD_VECTORS, sigma=SIGMA)
LISTED = made("heads", heads=PAIRS)
AVERAGE = made("head_means", means=MEANS)
MAPPED = (1, 3)
"""Layers with a map: the second has rank 2."""
SPAN, READ, WRITE = random_vectors(3, HIDDEN), random_vectors(3, HIDDEN) / 8, VECTORS
SCALE, SHIFT = random_vectors(2, HIDDEN), random_vectors(2, HIDDEN)
SUBSPACES = made("subspaces", vectors=SPAN, layers=(3, 1, 3))
LOW_RANK = made("low_rank", read=READ, write=WRITE, shift=SIGMA, layers=(3, 1, 3))
DIAGONAL = made("diagonal", scale=SCALE, shift=SHIFT, layers=MAPPED)
MAP = {"method": "steering", "op": "affine", "artifact": LOW_RANK.digest}
STORE = {
    artifact.digest: artifact
    for artifact in (STEER, TASK, TRUTH, LISTED, AVERAGE, SUBSPACES, LOW_RANK, DIAGONAL)
}


def plan_for(core: EngineCore, prompt: TinyPrompt, entries: list[dict[str, Any]]) -> Plan | None:
    """:func:`engine.plan_for`, with the artifacts above."""
    facts = {"sink_dims": (3, 11), "fingerprint": MODEL}
    return engine.plan_for(core, prompt, entries, STORE.get, **facts)


Hidden = Callable[[int, torch.Tensor, Rows], torch.Tensor]
"""(residual, h [T, D], rows) -> h'; or (layer, z [T, heads, dim], rows) -> z'."""


Added = Callable[[str, int, torch.Tensor, Rows], torch.Tensor]
"""(site, layer, what is added to the residual [T, D], rows) -> what is added instead."""


def output_of(layer: Any, site: str) -> Any:
    """The module whose output a residual gets: that of a norm behind it, in Gemma 3.

    Elsewhere ``post_attention_layernorm`` is the norm before the MLP.
    """
    normed = hasattr(layer, "post_feedforward_layernorm")
    if site == "attention_output":
        return layer.post_attention_layernorm if normed else layer.self_attn
    return layer.post_feedforward_layernorm if normed else layer.mlp


@dataclass
class Oracle:
    """Greedy generation by full recomputation with what sites hold changed."""

    model: Any
    rows: str
    residual: Hidden | None = None
    heads: Hidden | None = None
    added: Added | None = None
    length: int = 0
    start: int = 0

    def __post_init__(self) -> None:
        self.model.set_attn_implementation("eager")
        decoder = self.model.get_decoder()
        for index, layer in enumerate(decoder.layers):
            layer.register_forward_pre_hook(self._before(index), with_kwargs=True)
            layer.self_attn.o_proj.register_forward_pre_hook(self._heads(index))
            for site in ("attention_output", "mlp_output"):
                hook = self._output(site, index)
                output_of(layer, site).register_forward_hook(hook)
        decoder.layers[-1].register_forward_hook(self._behind)

    def _edited(self, positions: int) -> Rows:
        """Which rows of the sequence so far the named rows are."""
        at = torch.arange(positions)
        named = {
            "prompt": at < self.length,
            "question": (at >= self.start) & (at < self.length),
            "last": at == self.length - 1,
            "generated": at >= self.length,
        }
        chosen = torch.stack([named[name] for name in self.rows.split("+")]).any(0)
        return chosen.double()[:, None]

    def _before(self, index: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            if self.residual is None:
                return None
            assert args
            changed = self.residual(index, args[0][0], self._edited(args[0].shape[1]))
            return (changed[None], *args[1:]), kwargs

        return hook

    def _behind(self, module: Any, args: Any, output: torch.Tensor) -> Any:
        if self.residual is None:
            return None
        return self.residual(LAYERS, output[0], self._edited(output.shape[1]))[None]

    def _output(self, site: str, index: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> Any:
            if self.added is None:
                return None
            own = output[0] if isinstance(output, tuple) else output
            changed = self.added(site, index, own[0], self._edited(own.shape[1]))[None]
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    def _heads(self, index: int) -> Any:
        def hook(module: Any, args: Any) -> Any:
            if self.heads is None:
                return None
            z = args[0][0].reshape(-1, HEADS, DIM)
            return (self.heads(index, z, self._edited(len(z))).reshape(args[0].shape),)

        return hook

    def run(self, prompt: TinyPrompt, steps: int = STEPS) -> Said:
        self.length = len(prompt.tokens)
        self.start = max((image.start + image.length for image in prompt.images), default=0)
        return greedy(lambda tokens: logits(self.model, prompt, tokens), list(prompt.tokens), steps)


def unit(vector: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = vector / vector.norm()
    return made


def at_residuals(edit: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Hidden:
    """``edit(h [T, D], stored vector)`` at the artifact's residuals, in the rows named."""

    def residual(index: int, h: torch.Tensor, rows: Rows) -> torch.Tensor:
        if index not in RESIDUALS:
            return h
        return h + rows * (edit(h, VECTORS[RESIDUALS.index(index)]) - h)

    return residual


def keeping_norm(edit: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def kept(h: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        changed = edit(h, v)
        norms: torch.Tensor = h.norm(dim=-1, keepdim=True) / changed.norm(dim=-1, keepdim=True)
        return changed * norms

    return kept


def along(h: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (h @ unit(v))[:, None]


def rms(h: torch.Tensor) -> torch.Tensor:
    return h.square().mean(-1, keepdim=True).sqrt()


STEERING: dict[str, tuple[dict[str, Any], Callable[..., torch.Tensor]]] = {
    "add": ({"coefficient": 0.3}, lambda h, v: h + 0.3 * v),
    "add unit": ({"coefficient": -2, "unit": "unit"}, lambda h, v: h - 2 * unit(v)),
    "add rms": ({"coefficient": 8, "unit": "rms"}, lambda h, v: h + 8 * rms(h) * unit(v)),
    "add, same norm": (
        {"coefficient": 0.5, "keep_norm": True},
        keeping_norm(lambda h, v: h + 0.5 * v),
    ),
    "piecewise": (
        {"op": "piecewise", "coefficient": 0.4},
        lambda h, v: h + 0.4 * v * along(h, v).sign(),
    ),
    "project out": ({"op": "project_out"}, lambda h, v: h - (h @ v)[:, None] * v / (v @ v)),
    "half out, same norm": (
        {"op": "project_out", "coefficient": 0.5, "keep_norm": True},
        keeping_norm(lambda h, v: h - 0.5 * (h @ v)[:, None] * v / (v @ v)),
    ),
    "clamp": (
        {"op": "clamp", "low": -0.2, "high": 0.5},
        lambda h, v: h + (along(h, v).clamp(-0.2, 0.5) - along(h, v)) * unit(v),
    ),
    "cap": (
        {"op": "clamp", "high": -0.5},
        lambda h, v: h + (along(h, v).clamp(max=-0.5) - along(h, v)) * unit(v),
    ),
}


def steering(name: str, rows: str) -> dict[str, Any]:
    return {"method": "steering", "artifact": STEER.digest, "rows": rows, **STEERING[name][0]}


def heads_oracle(
    model: Any, rows: str, edit: Callable[[torch.Tensor, int], torch.Tensor]
) -> Oracle:
    """``edit(z [T, dim], place in PAIRS)`` of the listed heads."""

    def heads(layer: int, z: torch.Tensor, rows: Rows) -> torch.Tensor:
        z = z.clone()
        for place, (at, head) in enumerate(PAIRS):
            if at == layer:
                z[:, head] += rows * (edit(z[:, head], place) - z[:, head])
        return z

    return Oracle(model, rows, heads=heads)


HEAD_CASES: dict[str, tuple[dict[str, Any], Callable[[torch.Tensor, int], torch.Tensor]]] = {
    "sigma": (
        {"method": "head_steering", "artifact": TRUTH.digest, "alpha": 1.5},
        lambda z, i: z + 1.5 * SIGMA[i] * unit(HEAD_VECTORS[i]),
    ),
    "unit": (
        {"method": "head_steering", "artifact": TRUTH.digest, "alpha": -2, "unit": "unit"},
        lambda z, i: z - 2 * unit(HEAD_VECTORS[i]),
    ),
    "raw": (
        {"method": "head_steering", "artifact": TRUTH.digest, "alpha": 0.3, "unit": "raw"},
        lambda z, i: z + 0.3 * HEAD_VECTORS[i],
    ),
    "scale": (
        {"method": "head_scale", "gain": -1.5, "artifact": LISTED.digest},
        lambda z, i: -1.5 * z,
    ),
    "scale, listed": (
        {"method": "head_scale", "gain": 3, "heads": {"1": [0], "2": [3, 1]}},
        lambda z, i: 3 * z,
    ),
    "zero": ({"method": "head_ablation", "artifact": LISTED.digest}, lambda z, i: 0 * z),
    "mean": (
        {
            "method": "head_ablation",
            "mode": "mean",
            "means": AVERAGE.digest,
            "heads": {"1": [0], "2": [3, 1]},
        },
        lambda z, i: 0 * z + MEANS[PAIRS[i]],
    ),
}


def crowd(core: EngineCore) -> list[GenerateRequest]:
    """Plain and steered requests over shared prefixes; some pages fill while decoding."""
    made = []
    for text in (70, 40):  # a full page to share; a page outgrown while decoding
        prompt = tiny.prompt("llava", images=1, seed=text, text=text)
        kinds: dict[str, list[dict[str, Any]]] = {
            "plain": [],
            "prompt": [steering("add", "prompt+generated")],
            "generated": [steering("add", "generated")],
            "stronger": [{**steering("add", "prompt+generated"), "coefficient": 0.6}],
            # Recomputed behind a preemption, such rows come with others that are not edited.
            "clamp": [steering("clamp", "prompt")],
            "mlp": [{**steering("add", "last+generated"), "site": "mlp_output", "layers": [2]}],
            "map": [{**MAP, "site": "attention_output", "rows": "prompt+generated"}],
            "heads": [{**HEAD_CASES["sigma"][0]}],
            "with pai": [steering("add rms", "last+generated"), {"method": "pai", "alpha": 0.8}],
        }
        for kind, entries in kinds.items():
            plan = plan_for(core, prompt, entries) if entries else None
            name = f"{text} {kind}"
            made.append(make_request(prompt, name, plan, 9, ignore_eos=True, logprobs=1))
    return made


def told(results: dict[str, Any]) -> dict[str, list[int]]:
    return {name: result.tokens for name, result in results.items()}
