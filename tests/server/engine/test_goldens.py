"""Every method, option and notable combination gives what it gave before: goldens/FAMILY.json.

A golden is what a client sees: tokens and the receipt, which must be equal, and log-probabilities.
They hold no truth about a formula, the other tests do; they hold that a change of the engine's
insides changes no answer. Where an answer should change, record them anew with

    pytest tests/server/engine/test_goldens.py --record-goldens

and read what git shows. Weights are drawn by numpy, whose numbers no version changes.
"""

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from saccade_interventions.registry import Registry
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.models.family import serve
from saccade_testing import catalogue, tiny
from saccade_testing.engine import Result, ask, run

FOLDER = Path(__file__).parent / "goldens"
SHOWN = 6
"""Decimals of a recorded number."""
NEAR = 5e-6
"""Of log-probabilities: what the order of sums in float32 may change, and far below a rule."""
WAYS: dict[str, dict[str, Any]] = {
    "ordinary": {"overlap": False, "padded_decode": False},
    "as-on-a-gpu": {"overlap": True, "padded_decode": True},
}
STEPS, LONG = 7, 12
SLOW_TO_ACT = ("sgrs", "locore")
"""What begins to act a few tokens into an answer."""

SAMPLED: dict[str, Any] = {"temperature": 1.2, "seed": 5}
FILTERED: dict[str, Any] = {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "seed": 6}
PENALISED: dict[str, Any] = {
    "repetition_penalty": 1.3,
    "presence_penalty": 0.4,
    "frequency_penalty": 0.2,
    "logit_bias": {20: 2.0, 31: -3.0},
}
HELD: dict[str, Any] = {
    **{"temperature": 0.7, "seed": 2, "min_tokens": 4, "ignore_eos": False},
    "stop_token_ids": tuple(range(10, 97, 4)),
}
FORCED: dict[str, Any] = {"forced": (33, 44, 55)}
DRAWN: dict[str, tuple[str, dict[str, Any]]] = {
    "plain, sampled": ("plain", SAMPLED),
    "plain, filtered": ("plain", FILTERED),
    "plain, penalised": ("plain", PENALISED),
    "plain, held": ("plain", HELD),
    "sgrs, sampled": ("sgrs", SAMPLED),
    "sgrs, filtered": ("sgrs most salient", FILTERED),
    "sgrs, penalised": ("sgrs", {**PENALISED, **SAMPLED}),
    "sgrs, held": ("sgrs", HELD),
    "dola, sampled": ("dola", SAMPLED),
    "dola, filtered": ("dola jsd", FILTERED),
    "dola, penalised": ("dola", PENALISED),
    "dola, held": ("dola", HELD),
    "act, sampled": ("act", SAMPLED),
    "act, penalised": ("act", PENALISED),
    "act, forced": ("act", FORCED),
    "locore, filtered": ("locore", FILTERED),
    "locore, penalised": ("locore after image", PENALISED),
    "steering, filtered": ("steering", FILTERED),
}
DRAWN_SEEING: dict[str, tuple[str, dict[str, Any]]] = {
    **DRAWN,
    "vcd, sampled": ("vcd", SAMPLED),
    "vcd, filtered": ("vcd", FILTERED),
    "vcd, penalised": ("vcd", PENALISED),
    "vcd, held": ("vcd", HELD),
    "contrast, penalised": ("pai + contrast", PENALISED),
    "vhr, sampled": ("vhr", SAMPLED),
    "vhr, penalised": ("vhr all rows", PENALISED),
    "adaptvis, sampled": ("adaptvis unsure", SAMPLED),
    "adaptvis, penalised": ("adaptvis sure", PENALISED),
    "adaptvis, forced": ("adaptvis unsure", FORCED),
    "var, sampled": ("var", SAMPLED),
    "var generated, penalised": ("var generated", PENALISED),
    "sgrs + adaptvis, sampled": ("sgrs + adaptvis", SAMPLED),
}
FEW = (
    *("plain", "act", "act receivers", "locore after image", "dola", "dola norm", "sgrs"),
    *("steering rms", "head steering", "pasta"),
)
FEW_SEEING = (
    *(*FEW, "pai", "var", "var generated", "vcd", "vhr", "vhr all rows", "vhr hidden"),
    *("adaptvis unsure", "var + vcd edited", "sgrs + var", "act + vhr", "locore + vhr hidden"),
)
FAMILIES: dict[str, tuple[str, ...] | None] = {
    "llama": None,
    "llava": None,
    "gemma3_text": FEW,  # windows, norms behind
    "qwen2_5_vl": FEW_SEEING,  # three axes of positions
    "qwen3_vl": FEW_SEEING,  # image features in several layers
    "idefics3": FEW_SEEING,  # tiles with tokens between
}
"""Family -> names of the catalogue; None: all of it."""


def drawn_weights(model: Any) -> Any:
    """Matrices drawn by numpy from their names; tiny models' own come from torch."""
    for name, values in model.state_dict().items():
        if values.dim() >= 2 and values.is_floating_point():
            rng = np.random.default_rng(zlib.crc32(name.encode()))
            values.copy_(torch.from_numpy(0.15 * rng.standard_normal(tuple(values.shape))))
    return model


def scenarios(family: str, seeing: bool) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Name -> the entries of a request, and its sampling."""
    known = catalogue.WITH_IMAGE if seeing else catalogue.WITHOUT_IMAGE
    chosen = FAMILIES[family]
    if chosen is not None:
        return {name: (known[name], {}) for name in chosen}
    drawn = DRAWN_SEEING if seeing else DRAWN
    return {
        **{name: (entries, {}) for name, entries in known.items()},
        **{name: (known[of], sampling) for name, (of, sampling) in drawn.items()},
    }


def told(result: Result) -> dict[str, Any]:
    """All that a client could see, in a form that JSON keeps; the log-probabilities of
    candidates one a token, the token's own first.
    """
    last = result.last
    assert last is not None
    found: dict[str, Any] = {
        "tokens": result.tokens,
        "logprobs": [
            round(value, SHOWN)
            for entry in result.logprobs
            for value in (entry.logprob, *(value for _, value in entry.top))
        ],
        "ended": f"{last.finish_reason}",
        "error": last.error,
        "receipt": None,
    }
    receipt = last.receipt
    if receipt is not None:
        heads = msgspec.to_builtins(receipt.heads)
        if heads is not None:
            heads["divergence"] = [[round(v, SHOWN) for v in row] for row in heads["divergence"]]
            heads["total"] = None if heads["total"] is None else round(heads["total"], SHOWN)
        found["receipt"] = {
            "rows": {str(phase): count for phase, count in sorted(receipt.rows.items())},
            "moved": sorted([c.layer, c.head, c.rows] for c in receipt.moved),
            "counters": sorted([c.source, c.name, c.value] for c in receipt.counters),
            "heads": heads,
        }
    plain: dict[str, Any] = json.loads(json.dumps(found))  # tuples are lists, as in a file
    return plain


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs, in words."""
    said = []
    for field in ("tokens", "ended", "error"):
        if found[field] != wanted[field]:
            said.append(f"{field} {found[field]}, not {wanted[field]}")
    if found["tokens"] == wanted["tokens"] and not near(found["logprobs"], wanted["logprobs"]):
        off = np.abs(np.subtract(found["logprobs"], wanted["logprobs"])).max()
        said.append(f"log-probabilities are off by {off:.2g}")
    one, other = found["receipt"] or {}, wanted["receipt"] or {}
    for field in sorted({*one, *other}):
        if not alike(one.get(field), other.get(field)):
            said.append(f"receipt's {field} {one.get(field)}, not {other.get(field)}")
    return said


def near(found: Any, wanted: Any) -> bool:
    return len(found) == len(wanted) and np.allclose(found, wanted, rtol=0, atol=NEAR)


def alike(found: Any, wanted: Any) -> bool:
    """Equal, but for the last digits of numbers that are no integers."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(alike(found[k], wanted[k]) for k in found)
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(alike, found, wanted))
    if isinstance(found, float) and isinstance(wanted, float):
        return found == pytest.approx(wanted, abs=NEAR)
    return bool(found == wanted)


def written(goldens: Mapping[str, Any]) -> str:
    """A line for each scenario, so that a difference shows whose it is."""
    lines = (f"{json.dumps(name)}: {json.dumps(goldens[name])}" for name in sorted(goldens))
    return "{\n" + ",\n".join(lines) + "\n}\n"


@pytest.fixture(scope="module")
def models() -> Callable[[str], Any]:
    """``models(family)``: a served model, built once."""
    made: dict[str, Any] = {}

    def get(family: str) -> Any:
        if family not in made:
            made[family] = serve(drawn_weights(tiny.build(family)))
        return made[family]

    return get


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_what_they_were(
    family: str,
    way: str,
    models: Callable[[str], Any],
    request: pytest.FixtureRequest,
) -> None:
    """One at a time in ordinary steps; all together one step ahead, in padded decodes."""
    seeing = family in tiny.IMAGE_FAMILIES
    prompt = tiny.prompt(family, images=2, seed=4, text=31)
    registry = Registry.discover()
    config = EngineConfig(
        model=family, max_num_seqs=24, cache_tokens=8192, prefix_caching=False, **WAYS[way]
    )
    core = EngineCore(models(family), config)
    requests = {
        name: ask(
            prompt,
            registry.parse(list(entries)),
            name,
            LONG if name.startswith(SLOW_TO_ACT) else STEPS,
            facts=catalogue.FACTS,
            artifacts=catalogue.STORE.get,
            **{"logprobs": 1, **sampling},
        )
        for name, (entries, sampling) in scenarios(family, seeing).items()
    }
    if way == "ordinary":
        found = {name: told(run(core, [asked])[name]) for name, asked in requests.items()}
    else:
        found = {name: told(r) for name, r in run(core, list(requests.values())).items()}
    path = FOLDER / f"{family}.json"
    if way == "ordinary" and request.config.getoption("record_goldens"):
        FOLDER.mkdir(exist_ok=True)
        path.write_text(written(found))
    wanted = json.loads(path.read_text())
    assert found.keys() == wanted.keys()
    off = [f"{name}: {what}" for name in found for what in differences(found[name], wanted[name])]
    assert not off, "\n" + "\n".join(off)


def test_every_scenario_is_one_of_its_own() -> None:
    """An option that changes nothing on both prompts would hold nothing."""
    text, seeing = (
        json.loads((FOLDER / f"{name}.json").read_text()) for name in ("llama", "llava")
    )
    seen: dict[str, str] = {}
    for name, golden in seeing.items():
        told = json.dumps([golden, text.get(name)])
        assert told not in seen, (name, seen[told])
        seen[told] = name
