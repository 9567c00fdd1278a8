r"""VHD and T-VHD: vision-aware head divergence (He et al., ACL 2025).

    VHD_{t,l,h} = | o_{t,l,h}(with images) - o_{t,l,h}(without) |_2
    T-VHD_t     = sum over layers of the sum of the k largest VHD_{t,l,:}

of the outputs of heads, before their projection, at the row that predicts token t; the other branch
reads the same text with the images taken out. Words that the image had no part in have a low one.
The paper does not give k. Here it is half of the heads, which is how many the paper's method calls
vision-aware.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from saccade_interventions.model_facts import ModelFacts
from saccade_server.detectors.base import InLayers, TokenOf
from saccade_server.detectors.traced import Floats, Reduce, Scores, Traced, by_token, nothing


class VHD(InLayers):
    """How much the image changes what heads put out."""

    title: ClassVar[str] = "Vision-aware head divergence"
    summary: ClassVar[str] = "How far the outputs of heads are from those without the image."
    source: ClassVar[str] = (
        "He et al., Cracking the Code of Hallucination in LVLMs with Vision-aware Head "
        "Divergence, ACL 2025"
    )
    unit: ClassVar[str] = "norm of head outputs"
    suspect: ClassVar[Literal["low", "high"]] = "low"
    needs_image: ClassVar[bool] = True

    name: Literal["vhd"] = "vhd"

    top: int | None = Field(None, ge=1)
    """The largest so many heads of a layer count. None: half of them, rounded up."""

    reduce: Reduce = "mean"
    """How the tokens' scores become the answer's: its least, mean or greatest."""

    def trace(self, model: ModelFacts, token_of: TokenOf) -> dict[str, Any]:
        return {"vhd": {"layers": self.layers_of(model)}}

    def scores(self, traced: Traced) -> Scores:
        if not traced.images:
            return nothing("the prompt has no image")
        divergence = traced.drawing("vhd")  # [token, layer, head]
        first = divergence[:1].reshape(-1, divergence.shape[-1])
        return by_token(t_vhd(divergence, self.top), self.reduce, vhd=first)


def t_vhd(divergence: Floats, top: int | None) -> Floats:
    """T-VHD [row] of VHD [row, layer, head]; ``top`` None is half of the heads, rounded up."""
    heads = divergence.shape[-1]
    largest = min(heads, (heads + 1) // 2 if top is None else top)
    found: Floats = np.sort(divergence, -1)[..., heads - largest :].sum((-2, -1))
    return found
