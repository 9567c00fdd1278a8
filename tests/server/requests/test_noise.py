"""VCD's noise: its formula, its seed, and one noise for both copies of a still image."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from saccade_server.models.conversation import Message
from saccade_server.models.prompt import PreparedImage, PromptProcessor
from saccade_server.requests.noise import NoiseCache, noised
from saccade_testing import processors

KEPT = 0.744798


def image(pixels: Any, grid: Any = None, copies: int = 1) -> PreparedImage:
    return PreparedImage("clean", 3, 4, pixels.astype(np.float32), grid, copies)


def test_a_fixed_size_image_is_mixed_with_noise_of_its_shape() -> None:
    pixels = np.random.default_rng(1).standard_normal((3, 40, 40))
    made = noised(image(pixels), KEPT, (5, 0))
    noise = (made.pixels - KEPT**0.5 * pixels) / (1 - KEPT) ** 0.5
    assert abs(noise.mean()) < 0.05
    assert noise.std() == pytest.approx(1, abs=0.03)
    assert abs(np.corrcoef(noise.ravel(), pixels.ravel())[0, 1]) < 0.05
    assert (made.start, made.length, made.grid, made.pixels.dtype) == (3, 4, None, np.float32)
    assert made.digest != "clean"


def test_the_seed_decides_and_nothing_else() -> None:
    pixels = np.zeros((3, 8, 8))
    first, again = (noised(image(pixels), KEPT, (5, 0)) for _ in range(2))
    assert np.array_equal(first.pixels, again.pixels)
    assert first.digest == again.digest
    for seed in ((6, 0), (5, 1)):
        assert noised(image(pixels), KEPT, seed).digest != first.digest
    weaker = noised(image(pixels), 0.9, (5, 0))
    np.testing.assert_allclose(weaker.pixels / first.pixels, (0.1 / (1 - KEPT)) ** 0.5, rtol=1e-5)


def test_the_digest_names_the_image_and_all_that_was_done_to_it() -> None:
    clean = image(np.zeros((3, 8, 8)))
    digests = {
        noised(replace(clean, digest=digest), kept, seed).digest
        for digest in ("clean", "another")
        for kept in (KEPT, 0.9)
        for seed in ((5, 0), (5, 1), (50,))
    }
    assert len(digests) == 12
    assert not digests & {"clean", "another"}


def test_noise_is_kept_within_its_budget_and_made_again_the_same() -> None:
    cache = NoiseCache(3 * 4 * 100)
    wanted = {
        seed: 2 * np.random.default_rng((seed,)).standard_normal(100, np.float32)
        for seed in range(5)
    }
    held = cache.noise((100,), (0,), 4.0)
    for seed in (1, 2, 0, 3, 4):
        np.testing.assert_array_equal(cache.noise((100,), (seed,), 4.0), wanted[seed])
    assert cache.noise((100,), (0,), 4.0) is held, "used since: longer kept than what was not"
    assert cache.noise((100,), (1,), 4.0) is not cache.noise((10, 10), (1,), 4.0)
    np.testing.assert_array_equal(cache.noise((100,), (1,), 4.0), wanted[1])
    np.testing.assert_array_equal(cache.noise((100,), (1,), 1.0), wanted[1] / 2)
    assert cache.noise((301,), (0,), 4.0).size == 301, "what is too large is made and not kept"
    assert cache._bytes == sum(array.nbytes for array in cache._held.values()) <= 3 * 4 * 100
    with pytest.raises(ValueError, match="read-only"):
        held[0] = 1


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_both_copies_of_a_still_image_get_the_same_noise(family: str, prompt_folder: Any) -> None:
    """On what the family's own processor makes: the copies are equal before and after."""
    prompts = PromptProcessor.load(prompt_folder(family)[0])
    asked = Message("user", (processors.picture(64, 48), "What is this?"))
    (made,) = prompts.chat([asked]).images
    after = noised(made, KEPT, (0, 0))
    assert made.copies == 2
    before, mixed = (
        pixels.reshape(len(pixels), 3, 2, -1) for pixels in (made.pixels, after.pixels)
    )
    assert np.array_equal(before[:, :, 0], before[:, :, 1])
    assert np.array_equal(mixed[:, :, 0], mixed[:, :, 1])
    noise = mixed[:, :, 0] - KEPT**0.5 * before[:, :, 0]
    assert noise.std() == pytest.approx((1 - KEPT) ** 0.5, rel=0.05)
    flat = noise.reshape(-1, noise.shape[-1])
    assert not np.array_equal(flat[0], flat[1])
