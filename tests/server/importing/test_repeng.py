"""An imported vector at a coefficient does what repeng does with it: float64, token by token.

repeng's ``ControlModule`` wraps ``layers[N]`` and changes what comes out of it, in every row; it is
written out here as a hook on transformers' model, which recomputes all for each token.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saccade_interventions.artifacts import read_artifact
from saccade_server.importing import ImportRefused, Target, converted, read_vectors
from saccade_testing import engine, tiny
from saccade_testing.engine import core_with, make_request, run
from saccade_testing.foreign_vectors import gguf_bytes, torch_bytes, vectors
from saccade_testing.oracle import Said, check, greedy, logits
from saccade_testing.steered import HIDDEN, LAYERS, MODEL, STEPS

TARGET = Target(MODEL, LAYERS, HIDDEN)


def with_repeng(
    family: str, prompt: Any, control: dict[int, Any], coeff: float, normalize: bool
) -> Said:
    model = tiny.build(family)
    model.set_attn_implementation("eager")

    def wrapped(raw: torch.Tensor) -> Any:
        def hook(module: Any, args: Any, output: Any) -> Any:
            modified = output[0] if isinstance(output, tuple) else output
            before = modified.norm(dim=-1, keepdim=True)
            modified = modified + raw
            if normalize:
                modified = modified / modified.norm(dim=-1, keepdim=True) * before
            return (modified, *output[1:]) if isinstance(output, tuple) else modified

        return hook

    layers = model.get_decoder().layers
    for layer, vector in control.items():
        layers[layer].register_forward_hook(wrapped(coeff * torch.from_numpy(vector).double()))
    return greedy(lambda tokens: logits(model, prompt, tokens), list(prompt.tokens), STEPS)


@pytest.mark.parametrize(
    ("family", "layers", "coeff", "normalize"),
    [
        ("llama", (1, 2, 3), 0.4, False),
        ("llama", (1, 2), 0.7, True),
        ("qwen3", (3,), -1.5, False),  # what leaves the last layer
        ("llava", (0, 2), 0.5, True),
    ],
)
def test_a_coefficient_is_repengs(
    tmp_path: Path, family: str, layers: tuple[int, ...], coeff: float, normalize: bool
) -> None:
    control = vectors(layers, HIDDEN, seed=7)
    prompt = tiny.prompt(family, images=int(family in tiny.IMAGE_FAMILIES), seed=1, text=30)
    wanted = with_repeng(family, prompt, control, coeff, normalize)
    plain = with_repeng(family, prompt, {}, coeff, normalize)
    assert wanted[-1] != plain[-1], "the case must exercise the vectors"
    made = converted(read_vectors(gguf_bytes(tmp_path, control)), TARGET)
    artifact = read_artifact(made.data)
    assert [line[:2] for line in made.lines] == [(layer, layer + 1) for layer in layers]
    entry: dict[str, Any] = {"method": "steering", "artifact": made.digest}
    entry |= {"coefficient": coeff, "rows": "prompt+generated", "keep_norm": normalize}
    core = core_with(family, max_batched_tokens=24)
    plan = engine.plan_for(core, prompt, [entry], {made.digest: artifact}.get, fingerprint=MODEL)
    request = make_request(prompt, "x", plan, STEPS, logprobs=1, ignore_eos=True)
    check(run(core, [request])["x"], wanted)


def test_a_stored_coefficient_is_that_of_requests_that_name_none(tmp_path: Path) -> None:
    found = read_vectors(gguf_bytes(tmp_path, vectors((1, 2), HIDDEN)))
    made = converted(found, TARGET, 0.4, "from there")
    artifact = read_artifact(made.data)
    assert (dict(artifact.defaults), artifact.notes) == ({"coefficient": 0.4}, "from there")
    core, prompt = core_with("llama"), tiny.prompt("llama")
    plans = [
        engine.plan_for(
            core,
            prompt,
            [{"method": "steering", "artifact": made.digest, **given}],
            {made.digest: artifact}.get,
            fingerprint=MODEL,
        )
        for given in ({}, {"coefficient": 0.4}, {"coefficient": 1})
    ]
    assert plans[0].fingerprint() == plans[1].fingerprint() != plans[2].fingerprint()


@pytest.mark.parametrize(
    ("vector", "layer", "said"),
    [
        (np.ones(HIDDEN), LAYERS, "layer 4; the model's last one is 3"),
        (np.ones(HIDDEN + 1), 1, "65 numbers; the model's hidden size is 64"),
        (np.ones((2, HIDDEN)), 1, "2 x 64 numbers"),
        (np.zeros(HIDDEN), 1, "layer 1 is zero"),
        (np.full(HIDDEN, 1e-300), 1, "layer 1 is zero"),  # in float32 it is
        (np.full(HIDDEN, np.nan), 1, "layer 1 has a number that is not finite"),
        (np.full(HIDDEN, np.inf), 1, "not finite"),
        (np.full(HIDDEN, 1e10), 1, r"above 1e\+09"),
    ],
)
def test_what_the_model_cannot_have_is_refused(vector: Any, layer: int, said: str) -> None:
    data = torch_bytes({0: np.ones(HIDDEN), layer: vector})
    with pytest.raises(ImportRefused, match=said):
        converted(read_vectors(data), TARGET)


def test_equal_files_give_equal_artifacts(tmp_path: Path) -> None:
    control = vectors((1, 3), HIDDEN)
    ways = (
        gguf_bytes(tmp_path, control),
        torch_bytes({layer: torch.from_numpy(v) for layer, v in control.items()}),
        torch_bytes({3: control[3], 1: control[1]}),
    )
    assert len({converted(read_vectors(data), TARGET).digest for data in ways}) == 1
