"""What a request costs the host before the forward pass of its first step, part by part.

An engine of the sizes of a 7B over a model that computes nothing. The whole prompt is one step, so
that step's share is the largest there is. "new": the engine has met no such settings before;
"again": settings of an earlier request that has ended, for another prompt. Prompts share no prefix.

Images are prepared already, as an artifact is read; noised ones were asked for before, but
for the group "new images", which nobody has asked about.

- parse, compile: the API's side, the entries checked and made a plan
- branches: those that the plan asks for, with noise where VCD wants it
- wire: the request encoded and decoded, without pixels
- accept: the engine's checks, and the queue
- rows: table rows found and written, key classes among them
- keys: the prompt's pages looked up in the cache
- launch: the rest of scheduling, and of the step, until the model is called
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from report import Target

from hosting.settings import TEXT, Setting, artifacts, settings
from hosting.stub import FINGERPRINT, IMAGE_SIDE, IMAGE_TOKENS, VOCABULARY, Reached, engine
from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Context
from saccade_interventions.registry import Registry
from saccade_server.engine import prefix, rows, tables
from saccade_server.engine.core import EngineCore
from saccade_server.engine.lending import with_pixels
from saccade_server.engine.messages import Submit, decode_command, encode
from saccade_server.engine.request import EMPTY, SamplingParams
from saccade_server.models.prompt import PreparedImage, RenderedPrompt
from saccade_server.models.views import Cells
from saccade_server.requests.facts import facts_of
from saccade_server.requests.prepared import described, under

PROMPTS = {"1024": (1024, 1), "4096": (4096, 4)}
"""Name -> tokens, images."""
PARTS = ("parse", "compile", "branches", "wire", "accept", "rows", "keys", "launch")
REQUESTS = 9
MOST_MS = 2.0
COUNTED = ((rows.PlanRows, "acquire", "rows"), (prefix.PageKeyer, "extend", "keys"))
FLUSH = "flush"
NEW_IMAGES = "new images"


class Clock:
    """CPU milliseconds of this process by part, each without the parts within it."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(PARTS, 0.0)
        self._at = 0.0
        self._inside = 0.0

    def start(self) -> None:
        self._at, self._inside = time.process_time(), 0.0

    def stop(self, part: str, at: float | None = None) -> None:
        """Book the time since :meth:`start`, or the last stop."""
        at = time.process_time() if at is None else at
        self.spent[part] += (at - self._at) * 1e3 - self._inside
        self.start()

    @contextmanager
    def inside(self, part: str) -> Iterator[None]:
        """Book what happens within to a part of its own."""
        began = time.process_time()
        try:
            yield
        finally:
            took = (time.process_time() - began) * 1e3
            self.spent[part] += took
            self._inside += took


@contextmanager
def counted(clock: Clock) -> Iterator[None]:
    """Have the parts of a step that have a name timed apart."""
    places = [place for place in COUNTED]
    if hasattr(tables.DeviceTables, FLUSH):
        places.append((tables.DeviceTables, FLUSH, "rows"))
    before: list[tuple[Any, str, Callable[..., Any]]] = []
    for owner, name, part in places:
        kept = getattr(owner, name)
        before.append((owner, name, kept))

        def timed(*args: Any, kept: Any = kept, part: str = part, **more: Any) -> Any:
            with clock.inside(part):
                return kept(*args, **more)

        setattr(owner, name, timed)
    try:
        yield
    finally:
        for owner, name, kept in before:
            setattr(owner, name, kept)


class Requests:
    """Makes requests of one prompt and times them."""

    def __init__(self, core: EngineCore, length: int, images: int) -> None:
        self._core = core
        self._registry = Registry.discover()
        self.named, self._artifacts = artifacts()
        self._facts = replace(
            facts_of(core.info, special_tokens=(0, 1, 2)),
            accepts_images=True,
            fingerprint=FINGERPRINT,
        )
        rng = np.random.default_rng(length)
        self._tokens = [0, *rng.integers(3, VOCABULARY, length - 1).tolist()]
        side, cells = (IMAGE_SIDE, IMAGE_SIDE), Cells(24, IMAGE_TOKENS // 24)
        pixels = rng.normal(size=(3, *side)).astype(np.float32)
        self._images = tuple(
            PreparedImage(
                *(f"{at}", 8 + at * (IMAGE_TOKENS + 4), IMAGE_TOKENS, pixels, None),
                cells=cells,
                size=side,
            )
            for at in range(images)
        )
        self._text = f"{TEXT} " + "a" * (length - len(TEXT) - 1)
        self._number = 0

    def __call__(
        self, setting: Setting, number: float, new_images: bool = False
    ) -> dict[str, float]:
        """The CPU milliseconds of one request's parts; the request has ended then."""
        self._number += 1
        entries = setting(number)
        prompt = self._prompt(f" {self._number}" if new_images else "")
        context = Context(self._facts, described(prompt), self._artifacts.get)
        clock = Clock()
        clock.start()
        interventions = self._registry.parse(entries)
        clock.stop("parse")
        plan = compile_plan(interventions, context) if interventions else None
        for item in interventions:
            item.resolved(context)
        clock.stop("compile")
        prepared = under(plan, prompt)
        clock.stop("branches")
        sampling = SamplingParams(max_tokens=64, temperature=0.0)
        request = prepared.request(f"r{self._number}", sampling)
        bare = with_pixels(request, lambda _: EMPTY)
        submitted: Any = Submit  # an earlier commit's has no number
        said = {"request": bare, "number": self._number}
        said = {name: said[name] for name in submitted.__struct_fields__}
        clock.start()
        arrived: Any = decode_command(encode(submitted(**said)))
        clock.stop("wire")
        pixels = {image.digest: image.pixels for image in request.all_images}
        arrived = with_pixels(arrived.request, lambda image: pixels[image.digest])
        clock.start()
        refused = self._core.submit(arrived)
        clock.stop("accept")
        assert refused is None, refused
        self._step(clock)
        self._core.abort(arrived.request_id)
        return clock.spent

    def _prompt(self, digest: str = "") -> RenderedPrompt:
        """The next prompt; ``digest`` is what its images' digests end with."""
        tokens = tuple([3 + self._number % (VOCABULARY - 3), *self._tokens[1:]])
        offsets = tuple((at, at + 1) for at in range(len(tokens)))
        images = tuple(replace(image, digest=image.digest + digest) for image in self._images)
        return RenderedPrompt(tokens, self._text, offsets, images)

    def _step(self, clock: Clock) -> None:
        scheduler, runner = self._core._scheduler, self._core._runner
        with counted(clock):
            clock.start()
            chunks = scheduler.schedule()
            assert chunks, "the request was not admitted"
            try:
                runner.launch(chunks)
            except Reached as reached:
                clock.stop("launch", reached.at)
            else:
                raise AssertionError("the step never came to its forward pass")


def measure() -> dict[str, Any]:
    """Median CPU milliseconds by prompt, setting, and whether the settings were met before."""
    torch.set_num_threads(1)
    core = engine(stops=True)
    found: dict[str, Any] = {}
    for at, (name, sizes) in enumerate(PROMPTS.items()):
        requests = Requests(core, *sizes)
        first = 0.9 - 0.05 * at  # strengths that the prompt before has not had
        kinds = settings(requests.named)
        kinds[NEW_IMAGES] = {"vcd": kinds["default"]["vcd"]}
        for kind, chosen in kinds.items():
            fresh = kind == NEW_IMAGES
            for method, setting in chosen.items():
                requests(setting, 1.0, fresh)  # what is made at first use
                gc.collect()
                gc.disable()
                runs = {
                    "new": [requests(setting, first + n * 1e-4, fresh) for n in range(REQUESTS)],
                    "again": [requests(setting, first, fresh) for _ in range(REQUESTS)],
                }
                gc.enable()
                met = {state: _summary(timed) for state, timed in runs.items()}
                found.setdefault(f"{name} {kind}", {})[method] = met
    return found


def _summary(timed: list[dict[str, float]]) -> dict[str, float]:
    medians = {part: statistics.median(run[part] for run in timed) for part in PARTS}
    whole = statistics.median(sum(run.values()) for run in timed)
    return {"sum": round(whole, 3), **{part: round(ms, 3) for part, ms in medians.items()}}


def targets(found: dict[str, Any]) -> list[Target]:
    """The slowest method of each group of requests."""
    made = []
    for group, methods in found.items():
        for state in ("new", "again"):
            slowest = max(methods, key=lambda name: methods[name][state]["sum"])
            value = methods[slowest][state]["sum"]
            what = f"request of {group}, {state}, host before its first step: {slowest}, the most"
            made.append(Target(what, value, "ms", MOST_MS, at_most=True))
    return made
