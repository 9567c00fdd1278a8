"""Random workloads of an engine, each from a seed: configuration, requests, arrivals, ends, faults.

All is drawn here, before anything runs, so that a seed says the whole of a workload.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from msgspec import structs

from saccade_interventions.base import Intervention
from saccade_interventions.errors import InterventionError
from saccade_interventions.registry import Registry
from saccade_kernels.batch import PAGE
from saccade_server.engine.request import GenerateRequest
from saccade_testing import catalogue, held, tiny
from saccade_testing.catalogue import Entry
from saccade_testing.engine import ask

REGISTRY = Registry.discover()
FAMILIES = {
    "llava": 0.5,
    "llama": 0.14,
    "qwen2_5_vl": 0.1,
    "qwen3": 0.06,
    "gemma3_text": 0.06,
    "qwen3_vl": 0.07,
    "idefics3": 0.07,
}
"""Family -> share of the workloads."""
WAYS: tuple[dict[str, bool], ...] = (
    {"overlap": False, "padded_decode": False},
    {"overlap": True, "padded_decode": False},
    {"overlap": False, "padded_decode": True},
    {"overlap": True, "padded_decode": True},
)
STRENGTHS = {
    **{"pai": "alpha", "locore": "beta", "vaf": "enhance", "head_scale": "gain"},
    **{"steering": "coefficient", "head_steering": "alpha", "var": "move_fraction"},
    **{"vcd": "alpha", "pai_contrast": "gamma", "dola": "strength", "sgrs": "alpha"},
    **{"m3id": "rate", "look_at": "strength"},
    **{"act": "theta", "scalingvis": "w", "vhr": "gain", "adaptvis": "w1", "pasta": "alpha"},
}
"""Method -> the field that is sometimes changed a little, so that programs differ."""
TEXTS = (3, 12, 30, 66, 90)
RULES = {"act": 3, "locore": 3, "dola": 3, "sgrs": 3, "var": 4, "vcd": 4, "vhr": 5, "adaptvis": 4}
"""Methods that are more than edits, and how much more often they are drawn."""
SHARED = 2
"""Settings of a workload that several of its requests have, without an image and with one."""
EXPRESSIONS = (
    "[a-f]{2,9}",
    r"(ab|12|true)+[.,]",
    r'\{"a": [0-9]{1,3}(,"b": (true|"[x-z]*"))?\}',
)
"""Of answers that grammars hold: some end early, some not before their length does."""
FAULTS = ("before", "behind", "logits")
"""Where a launch raises: before or behind the layers, or with the logits."""


@dataclass(frozen=True)
class Arrival:
    """A request, the step before which it comes, and after how many more its client leaves."""

    step: int
    request: GenerateRequest
    methods: tuple[Intervention, ...]
    entries: tuple[Entry, ...]
    leaves: int | None = None


@dataclass(frozen=True)
class Workload:
    """``captured``: padded decodes are recorded first, and replayed from blocks of garbage.

    ``faults``: number of a forward pass -> how it raises.
    """

    seed: int
    family: str
    config: dict[str, Any]
    captured: bool
    arrivals: tuple[Arrival, ...]
    faults: dict[int, str]


def draw(seed: int) -> Workload:
    """The workload of a seed."""
    rng = np.random.default_rng([20, seed])
    family = str(rng.choice(list(FAMILIES), p=list(FAMILIES.values())))
    prompts = _prompts(family, rng)
    settings = [_entries(seeing, rng) for seeing in (False, True) for _ in range(SHARED)]
    arrivals, step = [], 0
    for number in range(int(rng.integers(3, 10))):
        step += int(rng.choice((0, 0, 0, 1, 2, 6)))
        arrivals.append(_arrival(f"{seed}-{number}", step, prompts, settings, rng))
    if rng.random() < 0.4:
        arrivals += _conversation(f"{seed}", int(rng.integers(step + 1)), prompts, settings, rng)
        arrivals.sort(key=lambda arrival: arrival.step)
    arrivals = _held(seed, _owned(seed, arrivals))
    way = WAYS[rng.choice(4, p=(0.2, 0.15, 0.15, 0.5))]
    return Workload(
        seed,
        family,
        {"model": family, **way, **_limits(arrivals, rng)},
        way["padded_decode"] and bool(rng.random() < 0.5),
        tuple(arrivals),
        _faults(rng),
    )


def _owned(seed: int, arrivals: Sequence[Arrival]) -> list[Arrival]:
    """The same, in half of the workloads of several owners and with several priorities."""
    rng = np.random.default_rng([21, seed])
    if rng.random() < 0.5:
        return list(arrivals)
    return [
        replace(
            arrival,
            request=structs.replace(
                arrival.request,
                owner=str(rng.choice(("", "a", "b"))),
                priority=int(rng.choice((-3, 0, 0, 2))),
            ),
        )
        for arrival in arrivals
    ]


def _held(seed: int, arrivals: Sequence[Arrival]) -> list[Arrival]:
    """The same, some of whose answers grammars hold, in a third of the workloads."""
    rng = np.random.default_rng([22, seed])
    share = 0.0 if rng.random() < 0.65 else 0.5
    return [
        replace(arrival, request=held.held(arrival.request, str(rng.choice(EXPRESSIONS))))
        if rng.random() < share and not arrival.request.sampling.forced
        else arrival
        for arrival in arrivals
    ]


def _prompts(family: str, rng: np.random.Generator) -> list[tiny.TinyPrompt]:
    """A few, some of which begin alike: the same text and images, another end."""
    made: list[tiny.TinyPrompt] = []
    for _ in range(int(rng.integers(1, 3))):
        look = {"images": int(rng.choice((0, 1, 1, 2))), "seed": int(rng.integers(1000))}
        text = int(rng.choice(TEXTS))
        if rng.random() < 0.6:  # nearly full pages, so that an answer needs one more
            others = len(tiny.prompt(family, **look, text=0).tokens)
            filled = int(rng.choice((1, 2, 2))) * PAGE - int(rng.integers(1, 12))
            text = max(filled - others, 1)
        base = tiny.prompt(family, **look, text=text)
        made.append(base)
        behind = max((view.start + view.length + view.behind for view in base.images), default=1)
        for _ in range(int(rng.integers(0, 3))):
            kept = int(rng.integers(max(behind, len(base.tokens) - 40), len(base.tokens) + 1))
            more = rng.integers(10, tiny.VOCABULARY, int(rng.integers(1, 20))).tolist()
            made.append(replace(base, tokens=(*base.tokens[:kept], *more)))
    return made


def _arrival(
    name: str,
    step: int,
    prompts: Sequence[tiny.TinyPrompt],
    settings: Sequence[list[Entry]],
    rng: np.random.Generator,
) -> Arrival:
    """A request with settings that others have too, often, or with its own."""
    prompt = prompts[int(rng.integers(len(prompts)))]
    seeing = bool(prompt.images)
    entries = settings[int(rng.integers(SHARED)) + SHARED * seeing]
    if rng.random() < 0.4:
        entries = _entries(seeing, rng)
    leaves = int(rng.integers(0, 12)) if rng.random() < 0.1 else None
    sampling = {"max_tokens": int(rng.integers(1, 19)), **_sampling(rng)}
    return replace(_request(name, step, prompt, entries, sampling), leaves=leaves)


def _conversation(
    name: str,
    step: int,
    prompts: Sequence[tiny.TinyPrompt],
    settings: Sequence[list[Entry]],
    rng: np.random.Generator,
) -> list[Arrival]:
    """A request whose answer is known, and one that comes later and has that answer in its prompt:
    what was generated under a plan lies in cached pages, and is not what a prompt would be.
    """
    prompt = prompts[int(rng.integers(len(prompts)))]
    entries = settings[int(rng.integers(SHARED) + SHARED * bool(prompt.images))]
    said = tuple(rng.integers(10, 90, 16).tolist())
    more = tuple(rng.integers(10, 90, 3).tolist())
    sampling = {"max_tokens": len(said), "forced": said, "logprobs": 0}
    longer = replace(prompt, tokens=prompt.tokens + said + more)
    return [
        _request(f"{name}-first", step, prompt, entries, sampling),
        _request(f"{name}-second", step + 30, longer, entries, {"max_tokens": 4, "logprobs": 1}),
    ]


def _request(
    name: str,
    step: int,
    prompt: tiny.TinyPrompt,
    entries: Sequence[Entry],
    sampling: dict[str, Any],
) -> Arrival:
    """With as many of the entries as go together."""
    while True:
        methods = REGISTRY.parse(list(entries))
        known: dict[str, Any] = {"facts": catalogue.FACTS, "artifacts": catalogue.STORE.get}
        try:
            request = ask(prompt, methods, name, **known, **sampling)
        except InterventionError:  # they exclude one another, or a span is not there
            entries = entries[:-1]
            continue
        return Arrival(step, request, tuple(methods), tuple(entries))


def _entries(seeing: bool, rng: np.random.Generator) -> list[Entry]:
    known = catalogue.WITH_IMAGE if seeing else catalogue.WITHOUT_IMAGE
    kinds: dict[str, list[Sequence[Entry]]] = {}  # many names begin alike: one method's options
    for name, some in known.items():
        kinds.setdefault(name.split()[0], []).append(some)
    several = rng.choice((0, 1, 2, 3), p=(0.2, 0.5, 0.2, 0.1))
    shares = np.array([RULES.get(name, 1) for name in kinds])
    chosen = [kinds[name] for name in rng.choice(list(kinds), several, p=shares / shares.sum())]
    entries = [entry for some in chosen for entry in some[rng.integers(len(some))]][:4]
    return [_varied(entry, rng) if rng.random() < 0.5 else entry for entry in entries]


def _varied(entry: Entry, rng: np.random.Generator) -> Entry:
    field = STRENGTHS.get(entry["method"])
    if field is None or entry.get(field, 0.0) in (0.0, 1.0, "suppress"):
        return entry
    return {**entry, field: round(entry[field] * rng.choice((0.8, 0.9, 0.95)), 4)}


def _sampling(rng: np.random.Generator) -> dict[str, Any]:
    """How a request draws, and when it ends."""
    made: dict[str, Any] = {"seed": int(rng.integers(100))}
    if rng.random() < 0.55:
        made |= {"temperature": float(rng.choice((0.7, 1.0, 1.3)))}
        if rng.random() < 0.5:
            made |= {"top_p": 0.9, "top_k": int(rng.choice((0, 20))), "min_p": 0.01}
    if rng.random() < 0.2:
        made |= {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2}
    if rng.random() < 0.15:
        made |= {"logit_bias": {int(rng.integers(10, 90)): 2.0, 31: -3.0}}
    if rng.random() < 0.3:
        made |= {"ignore_eos": False, "stop_token_ids": tuple(range(10, 97, 7))}
        if rng.random() < 0.5:
            made |= {"min_tokens": 1}
    if rng.random() < 0.1:
        made |= {"forced": tuple(rng.integers(10, 90, 3).tolist())}
    if rng.random() < 0.6:
        made |= {"logprobs": int(rng.integers(0, 4))}
    return made


def _limits(arrivals: Sequence[Arrival], rng: np.random.Generator) -> dict[str, Any]:
    """Tight ones, such that the largest request can just run."""
    requests = [arrival.request for arrival in arrivals]
    pages = max(_pages(request) for request in requests)
    members = max(1 + len(request.branches) for request in requests)
    whole = max(
        (
            len(a.request.tokens) + sum(len(branch.tokens) for branch in a.request.branches)
            for a in arrivals
            if any(map(_needs_whole, a.entries))
        ),
        default=1,
    )
    seats = int(max(rng.choice((2, 4, 6, 12)), members))
    return {
        "max_num_seqs": seats,
        "max_batched_tokens": int(max(rng.choice((8, 20, 37, 80, 256, 1024)), whole, seats)),
        "cache_tokens": PAGE * int(max(pages + rng.choice((0, 0, 1, 1, 2, 3, 20)), 2)),
        "max_programs": int(rng.choice((12, 16, 64))),
        "max_per_head_classes": int(rng.choice((2, 2, 3, 8))),
        "prefix_caching": bool(rng.random() < 0.75),
        "image_cache_bytes": int(rng.choice((1, 20_000, 2**28))),
    }


def _pages(request: GenerateRequest) -> int:
    """Pages that a request and its branches hold in the end."""
    lengths = [len(request.tokens), *(len(branch.tokens) for branch in request.branches)]
    return sum(-(-(length + request.sampling.max_tokens) // PAGE) for length in lengths)


def _needs_whole(entry: Entry) -> bool:
    """True if the method wants its prompt computed in one step."""
    if entry["method"] == "vhr":
        return "prompt" in entry["rows"] or "question" in entry["rows"]
    return bool(entry["method"] == "act")


def _faults(rng: np.random.Generator) -> dict[int, str]:
    """Often none; else one, or a few in a row, which a request does not survive either."""
    if rng.random() < 0.6:
        return {}
    first, count = int(rng.integers(0, 14)), int(rng.choice((1, 1, 2, 3)))
    return {first + i: str(rng.choice(FAULTS)) for i in range(count)}
