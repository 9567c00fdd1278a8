"""Head scaling: weigh what chosen heads contribute (Michel et al., NeurIPS 2019, arXiv 1905.10650).

    z_h' = g z_h    for each chosen head h, on the chosen rows

where z_h is the head's output before the output projection W_o. The projection is linear, so this
weighs the head's contribution W_o^h z_h to the residual. It is also a change of the row's
attention, A' = g A, that is not renormalised.

g = 1 changes nothing, g = 0 is the paper's pruning mask (``head_ablation`` offers other kinds of
removing a head), g > 1 amplifies, g < 0 is allowed but unpublished. The paper prunes by the
importance |dL/dg| of each head; ranking heads is calibration and not part of this method.

Several entries that name one head multiply, to a factor of 16 at most. Heads are query heads,
counted as in the input of the output projection.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from saccade_interventions.base import Grid, Level, Probe
from saccade_interventions.context import Context
from saccade_interventions.edits import MOST_GAIN
from saccade_interventions.headlists import ChosenHeads
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.plan import Plan


class HeadScale(ChosenHeads):
    """Multiply the outputs of chosen heads: z' = g z."""

    title: ClassVar[str] = "Head scaling"
    summary: ClassVar[str] = "Multiplies the outputs of the heads a request names by a gain."
    paper: ClassVar[str] = (
        "Michel, Levy and Neubig, Are Sixteen Heads Really Better than One?, NeurIPS 2019, "
        "arXiv 1905.10650"
    )
    level: ClassVar[Level] = "head_output"
    example: ClassVar[dict[str, Any]] = {
        "method": "head_scale",
        "gain": 1.5,
        "heads": {"1": [0, 2]},
    }
    neutral: ClassVar[dict[str, Any] | None] = {"gain": 1}
    grid: ClassVar[Grid] = (
        {"gain": 1.1},
        {"gain": 1.25},
        {"gain": 1.5},
        {"gain": 2.0},
    )
    """Gains above 1; the method has no default."""

    method: Literal["head_scale"] = "head_scale"

    gain: float = Field(ge=-MOST_GAIN, le=MOST_GAIN)
    """g. 1 changes nothing, 0 removes the heads' contribution."""

    @classmethod
    def probe(cls, model: ModelFacts) -> Probe:
        layers = list(range(model.layers))
        return Probe({"method": "head_scale", "gain": 4, "layers": layers})

    def compile(self, context: Context) -> Plan:
        plan = context.plan()
        plan.head(self.sites(context), self.phases, gain=self.gain)
        return plan.build()
