"""Every method, option and notable combination gives what it gave before: goldens/FAMILY.json.

A golden is what a client sees: tokens and the receipt, which must be equal, and log-probabilities.
They hold no truth about a formula, the other tests do; they hold that a change of the engine's
insides changes no answer. Where an answer should change, record them anew with

    pytest tests/server/engine/test_goldens.py --record-goldens

and read what git shows.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from saccade_interventions.registry import Registry
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_testing import catalogue, tiny
from saccade_testing.answers import differences, told
from saccade_testing.crowds import served
from saccade_testing.engine import ask, run

FOLDER = Path(__file__).parent / "goldens"
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


def written(goldens: Mapping[str, Any]) -> str:
    """A line for each scenario, so that a difference shows whose it is."""
    lines = (f"{json.dumps(name)}: {json.dumps(goldens[name])}" for name in sorted(goldens))
    return "{\n" + ",\n".join(lines) + "\n}\n"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_what_they_were(
    family: str,
    way: str,
    request: pytest.FixtureRequest,
) -> None:
    """One at a time in ordinary steps; all together one step ahead, in padded decodes."""
    seeing = family in tiny.IMAGE_FAMILIES
    prompt = tiny.prompt(family, images=2, seed=4, text=31)
    registry = Registry.discover()
    config = EngineConfig(
        model=family, max_num_seqs=24, cache_tokens=8192, prefix_caching=False, **WAYS[way]
    )
    core = EngineCore(served(family), config)
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
