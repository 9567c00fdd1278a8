"""Greedy engine output equals transformers' generate, token for token, for every family."""

from typing import Any

import pytest

from saccade_testing import tiny
from saccade_testing.engine import MakeCore, generate, make_request, run


def prompts(family: str) -> list[Any]:
    """Short, long, text-only and two-image prompts."""
    return [
        tiny.prompt(family, images=2, seed=1),
        tiny.prompt(family, images=0, seed=2, text=3),
        tiny.prompt(family, images=1, seed=3, text=70),
        tiny.prompt(family, images=3, seed=4, text=31),
        tiny.prompt(family, images=0, seed=5, text=130),
        tiny.prompt(family, images=1, seed=6, text=1),
    ]


@pytest.mark.parametrize("budget", [512, 16], ids=["ragged", "chunked"])
def test_equals_generate(family: str, budget: int, make_core: MakeCore) -> None:
    """A budget of 16 tokens cuts through images and mixes prefills with decodes."""
    model = tiny.build(family)
    wanted = [generate(model, prompt) for prompt in prompts(family)]
    core = make_core(family, max_batched_tokens=budget)
    requests = [make_request(p, str(i)) for i, p in enumerate(prompts(family))]
    results = run(core, requests)
    for index, tokens in enumerate(wanted):
        assert results[str(index)].tokens == tokens


@pytest.mark.parametrize("family", ["llama", "qwen2_5_vl"])
def test_preempted_sequences_continue(family: str, make_core: MakeCore) -> None:
    """Seven pages are too few for six sequences of up to 3 pages: some are recomputed."""
    model = tiny.build(family)
    core = make_core(family, cache_tokens=64 * 5, prefix_caching=False)
    items = prompts(family)
    requests = [make_request(p, str(i), max_tokens=70) for i, p in enumerate(items)]
    results = run(core, requests)
    assert core.stats().preemptions > 0
    for index, prompt in enumerate(items):
        assert results[str(index)].tokens == generate(model, prompt, 70)
    assert core.stats().cache_usage == 0


def test_warm_prefix_gives_the_same_tokens(make_core: MakeCore) -> None:
    """The second time most of the prompt comes from the cache, its image included."""
    core = make_core("llava")
    prompt = tiny.prompt("llava", images=1, seed=3, text=80)
    cold = run(core, [make_request(prompt, "cold")])["cold"]
    warm = run(core, [make_request(prompt, "warm")])["warm"]
    assert warm.tokens == cold.tokens
    assert cold.last.cached_tokens == 0
    assert warm.last.cached_tokens == 64


def test_another_image_is_another_prefix(make_core: MakeCore) -> None:
    """Same token ids, different pixels: nothing behind the image start may be shared."""
    core = make_core("llava")
    first = tiny.prompt("llava", images=1, seed=3, text=80)
    image = first.images[0]
    other = tiny.TinyImage(image.start, image.length, image.pixels[::-1].copy(), None)
    second = tiny.TinyPrompt(first.tokens, (other,))
    run(core, [make_request(first, "a")])
    result = run(core, [make_request(second, "b")])["b"]
    assert result.tokens == generate(tiny.build("llava"), second)


def test_distinct_images_are_encoded_once(make_core: MakeCore) -> None:
    core = make_core("llava", prefix_caching=False)
    prompt = tiny.prompt("llava", images=2, seed=1)
    run(core, [make_request(prompt, str(i)) for i in range(4)])
    assert core.stats().image_encodes == 2


def test_arrivals_in_mid_flight_change_nothing(make_core: MakeCore) -> None:
    core = make_core("llava", max_batched_tokens=24)
    items = prompts("llava")
    results: dict[str, list[int]] = {str(i): [] for i in range(len(items))}
    waiting = [make_request(p, str(i)) for i, p in enumerate(items)]
    while core.busy or waiting:
        if waiting:
            assert core.submit(waiting.pop()) is None
        for output in core.step():
            results[output.request_id] += output.tokens
    model = tiny.build("llava")
    for index, prompt in enumerate(items):
        assert results[str(index)] == generate(model, prompt)
