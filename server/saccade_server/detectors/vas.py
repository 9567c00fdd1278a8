r"""VAS: the visual attention score (AVAR, "From Narrow to Panoramic Vision", ICLR 2026).

    VAS = mean over layers l, heads h and user rows i of
          (mass of i on the image's keys) / (mass of i on the system prompt's keys)

a mean of ratios, over the rows of the user's text behind the image. The system prompt is what
stands before the user's turn, without the BOS. The score belongs to the prompt: it is there before
the first token, and every answer to one prompt has the same.

The formula is that of the paper; its body could not be read, and the published training code has
other quotients (a ratio of sums).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from saccade_interventions.model_facts import ModelFacts
from saccade_server.detectors.base import InLayers, TokenOf
from saccade_server.detectors.traced import Scores, Traced, nothing


class VAS(InLayers):
    """Mean ratio of attention to the image and to the system prompt."""

    title: ClassVar[str] = "Visual attention score"
    summary: ClassVar[str] = "How much the question looks at the image, against the system prompt."
    source: ClassVar[str] = (
        "From Narrow to Panoramic Vision: Attention-Guided Cold-Start Reshapes Multimodal "
        "Reasoning, ICLR 2026"
    )
    unit: ClassVar[str] = "ratio"
    suspect: ClassVar[Literal["low", "high"]] = "low"
    needs_image: ClassVar[bool] = True

    name: Literal["vas"] = "vas"

    def trace(self, model: ModelFacts, token_of: TokenOf) -> dict[str, Any]:
        return {"vas": {"layers": self.layers_of(model)}}

    def scores(self, traced: Traced) -> Scores:
        if not traced.images:
            return nothing("the prompt has no image")
        ratios = traced.of("vas")  # [row, layer, head]
        if not ratios.size or np.isnan(ratios).all():
            return nothing("there is no system prompt, or no text of the user behind the image")
        return Scores(float(ratios.mean()), values={"by_layer": ratios.mean((0, 2))})
