"""Positions equal transformers' own, and never touch the state it keeps."""

import pytest
import torch

from saccade_server.models.family import serve
from saccade_testing import tiny


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("images", [0, 1, 2, 3])
def test_positions_equal_get_rope_index(family: str, images: int) -> None:
    model = tiny.build(family)
    prompt = tiny.prompt(family, images=images)
    ids = torch.tensor([prompt.tokens])
    grids = torch.tensor([image.grid for image in prompt.images]) if images else None
    kinds = (ids == model.config.image_token_id).int()
    own, delta = model.model.get_rope_index(ids, kinds, image_grid_thw=grids)
    got = serve(model).positions(prompt.tokens, prompt.spans)
    assert torch.equal(got.table, own[:, 0])
    assert got.table.dtype == torch.int64
    assert got.delta == int(delta)
    assert model.model.rope_deltas is None


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_prompt_may_begin_and_end_with_an_image(family: str) -> None:
    got = serve(tiny.build(family)).positions([5] * 6, [(0, 6, (1, 4, 6))])
    assert got.table.tolist() == [[0] * 6, [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]]
    assert got.delta == 3 - 6


@pytest.mark.parametrize("family", ["llama", "qwen3", "llava", "llava_next", "smolvlm"])
def test_other_families_count(family: str) -> None:
    prompt = tiny.prompt(family)
    got = serve(tiny.build(family)).positions(prompt.tokens, prompt.spans)
    assert got.table.tolist() == [list(range(len(prompt.tokens)))]
    assert got.delta == 0


def test_features_and_grid_must_agree() -> None:
    served = serve(tiny.build("qwen2_5_vl"))
    with pytest.raises(ValueError, match="6 features, not 5"):
        served.positions([5] * 5, [(0, 5, (1, 4, 6))])
    with pytest.raises(ValueError, match="come with a grid"):
        served.positions([5] * 5, [(0, 5, None)])
