r"""SVAR: the summed visual attention ratio (Jiang et al., "Devils in Middle Layers of Large
Vision-Language Models", CVPR 2025).

    VAR_{t,l} = mean over heads of the mass that row t gives to the keys of images
    SVAR_t    = sum over layers of VAR_{t,l}

of the row that predicts token t, in layers 5 to 18 of 32, both included, in proportion in other
models. Tokens of real objects have a high one, tokens of hallucinated objects a low one. Sinks
among the image's keys count. The paper's own detector is a small network trained on the ratios of
single heads, which the published code does not come with a threshold for; this is the sum itself.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.targets import layers_of_32
from saccade_server.detectors.base import InLayers, TokenOf
from saccade_server.detectors.traced import Reduce, Scores, Traced, by_token, nothing


class SVAR(InLayers):
    """Sum over middle layers of the share of attention that images get."""

    title: ClassVar[str] = "Summed visual attention ratio"
    summary: ClassVar[str] = "How much the rows that predict the answer look at the image."
    source: ClassVar[str] = (
        "Jiang et al., Devils in Middle Layers of Large Vision-Language Models, CVPR 2025"
    )
    unit: ClassVar[str] = "share of attention, summed over layers"
    suspect: ClassVar[Literal["low", "high"]] = "low"
    needs_image: ClassVar[bool] = True

    name: Literal["svar"] = "svar"

    reduce: Reduce = "mean"
    """How the tokens' scores become the answer's: its least, mean or greatest."""

    def default_layers(self, model: ModelFacts) -> tuple[int, ...]:
        return tuple(layers_of_32(model.layers, 5, 18))

    def trace(self, model: ModelFacts, token_of: TokenOf) -> dict[str, Any]:
        layers = self.layers_of(model)
        return {"masses": {"layers": layers, "reduce": ["head"], "sinks": "keep", "recent": 0}}

    def scores(self, traced: Traced) -> Scores:
        if not traced.images:
            return nothing("the prompt has no image")
        image = traced.along("masses", "class").tolist().index("image")
        ratios = traced.drawing("masses")[:, :, image]  # [token, layer]
        return by_token(ratios.sum(1), self.reduce, ratios=ratios)
