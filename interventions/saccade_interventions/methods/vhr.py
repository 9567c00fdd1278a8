"""VHR: Vision-aware Head Reinforcement (He et al., ACL 2025, arXiv 2412.13949).

Few heads react to the image. With A_i the output of query head i before the output projection, at
the last prompt row, once with the image and once for the prompt without it:

    VHD_i = ||A_i(image) - A_i(no image)||                                          (Eq. 4)
    VHD_i = 0 if VHD_i > mean + std and ||A_i(no image)||^2 > mean + std            (Eq. 6)
    H     = {i : VHD_i > median}, about half of the heads of a layer                (Eq. 7)
    A'_i  = gain * A_i    for i in H, in all later computation, others untouched

mean, std and median go over the heads of the layer. Layers are measured in one sweep, each with the
chosen heads of those below amplified already (Algorithm 1); the choice then stays for the whole
answer. ``diagnose`` reports VHD of all heads, and T-VHD (Eq. 5): the sum over all layers of the k
largest, where large values say that the next word depends on the image.

The image is gone from the second prompt together with its tokens, and positions are counted anew;
``without_image="hidden"`` keeps the prompt as it is and hides the image from attention, so that
distances in the text stay. Edits of other methods act in both prompts, on the keys they have.

Which rows get the gain decides what the choice costs. All rows, as published, means that the prompt
must be computed at once, beside the second one, and that its cache is its own.
``rows="last+generated"`` leaves all keys and values of the prompt as they are: long prompts run in
chunks, and a cached image is found.

The published code was not at hand. Where the paper leaves something open: the sample standard
deviation (n - 1), the lower median, and gains that act on both prompts while layers are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from saccade_interventions.base import Grid, Intervention, Level, Probe
from saccade_interventions.context import Context
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.indices import Indices
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.phases import parse_rows
from saccade_interventions.plan import Plan
from saccade_interventions.rules import MeasuredGains
from saccade_interventions.targets import Rows, all_images, check_layers


class VHR(Intervention):
    """Amplify the heads whose output at the end of the prompt depends on the image."""

    title: ClassVar[str] = "Vision-aware Head Reinforcement"
    summary: ClassVar[str] = (
        "Compares every head's output with that for the prompt without its images and multiplies "
        "the outputs of the more image-dependent half."
    )
    paper: ClassVar[str] = (
        "He et al., Cracking the Code of Hallucination in LVLMs with Vision-aware Head "
        "Divergence, ACL 2025, arXiv 2412.13949"
    )
    level: ClassVar[Level] = "head_output"
    needs_image: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"method": "vhr", "gain": 2.0, "rows": "last+generated"}
    neutral: ClassVar[dict[str, Any] | None] = {"gain": 1.0}
    grid: ClassVar[Grid] = (
        {"gain": 1.1},
        {"gain": 1.25},
        {"gain": 1.5},
        {},
    )
    """Gains up to the default."""

    method: Literal["vhr"] = "vhr"

    gain: float = Field(2.0, ge=0, le=4)
    """Chosen heads are multiplied with it (alpha). 1 changes nothing; at 4 answers break down."""

    layers: Indices | None = None
    """Decoder layers, counted from 0. None: layer 1 and the last 14 of 32, in proportion."""

    rows: Rows = "prompt+generated"

    without_image: Literal["deleted", "hidden"] = "deleted"
    """How the second prompt lacks the images: without their tokens, or with their keys hidden."""

    branch_gains: bool = True
    """Amplify the chosen heads in the second prompt too, while the layers above are measured."""

    drop_outliers: bool = True
    """Never choose heads that stand out with and without the image (Eq. 6)."""

    std: Literal["sample", "population"] = "sample"
    """Which standard deviation outliers are found by: divided by n - 1, or by n."""

    relative: bool = False
    """Divide each head's VHD by its output's norm without the image: size is no advantage."""

    diagnose: int | None = Field(None, ge=1, le=1024)
    """k: report VHD of every head, and T-VHD, the sum over all layers of the k largest.

    With gain 1 the model is measured as it is.
    """

    @classmethod
    def probe(cls, model: ModelFacts) -> Probe:
        every = list(range(model.layers))
        return Probe({**cls.example, "gain": 4.0, "layers": every, "drop_outliers": False})

    def default_layers(self, model: ModelFacts) -> Sequence[int]:
        """Layer 1 and the last 14 of 32 layers, in proportion."""
        last = max(round(14 / 32 * model.layers), 1)
        return sorted({min(1, model.layers - 1), *range(model.layers - last, model.layers)})

    def compile(self, context: Context) -> Plan:
        plan = context.plan()
        all_images(context)
        self._check(context.model)
        layers = self.layers or self.default_layers(context.model)
        if self.gain != 1 or self.diagnose:
            rule = MeasuredGains(
                layers=tuple(sorted(layers)) if self.gain != 1 else (),
                gain=self.gain,
                phases=parse_rows(self.rows) if self.gain != 1 else (),
                drop_outliers=self.drop_outliers,
                images=self.without_image,
                both=self.branch_gains,
                population=self.std == "population",
                relative=self.relative,
                report=self.diagnose or 0,
            )
            plan.rule(rule)
        return plan.build()

    def normalised(self) -> dict[str, Any]:
        """The entry with every default filled in, and its layers in order."""
        entry = super().normalised()
        if isinstance(entry["layers"], list):
            entry["layers"] = sorted(entry["layers"])
        return entry

    def _check(self, model: ModelFacts) -> None:
        """Refuse what the model does not allow."""
        check_layers(self.layers or (), model)
        if self.diagnose is not None and self.diagnose > model.heads:
            message = f"a layer has {model.heads} heads; T-VHD sums at most as many"
            raise InterventionError(Code.INVALID_PARAMS, message, "diagnose")
