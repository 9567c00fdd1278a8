r"""VAR: Visual Attention Redistribution (Kang, Kim, Kim and Hwang, ICLR 2025, arXiv 2503.03321).

A few image tokens, often background, carry massive activations in fixed dimensions of the residual
stream and soak up attention without telling the model anything: visual attention *sinks*. VAR
moves part of the attention on all sinks to the image tokens that are none, in the query rows of
those heads that do look at the image.

Sinks, per layer, from the residual x entering it (D: the model's sink dimensions):

    token j is a sink  iff  max_{d in D} |x_j[d]| / RMS(x_j) >= tau

Keys fall into four classes: VN image, VS image sinks, TS sinks elsewhere, TO the rest. With the
masses m of one softmax row, of one head, the row is edited iff the head looks at the image, and
past its sinks:

    m_VN + m_VS >= min_visual_mass    and    m_VN >= rho (m_VN + m_VS)

and then, with p = move_fraction, and the proportions inside a class kept:

    m'_VS = (1 - p) m_VS,    m'_TS = (1 - p) m_TS,    m'_VN = m_VN + p (m_VS + m_TS)

The row still sums to 1, nothing is renormalised, no key disappears. Only features of an image are
image keys; the markers around them are text.

Several images count as one: one gate, one budget. ``image_index`` picks one, and the others are
then context like the text, whose sinks give as well. A gate and a budget for each image in the
same row are not offered: a table row tests its conditions once, before its one transform, but each
of n images could pass or fail on its own, which makes 2^n transforms. Two entries with an image
each work together where they share no (layer, head).

Where this differs from the published code (VisAttnSink, commit 98e62d6):

- The code keeps the sink positions of the first image of a run for every image after it, and from
  then on edits the rows of the image as well. Here sinks belong to the request.
- The code's p = 0.6 is the fraction *kept*, and its rho bounds the *sink* share. Here
  ``move_fraction`` is what moves (0.4 is the released setting, 0.6 the paper's formula read
  literally) and ``rho`` is the share that non-sinks need (the paper: 0.5 against hallucination,
  0.8 in general, 0.9 for vision-centric tasks).
- The code means to skip the last layer and does not; here it is skipped.
- An image that consists of sinks only gives NaN there, an unedited row here.
- Its sink dimensions are those of Llama-2-7B whatever the model; here the model's own.

It does keep one habit of the code: in a layer without a visual sink nothing moves, the mass of text
sinks included. ``require_visual_sink=False`` follows the paper's formula instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from saccade_interventions.artifacts import ArtifactId
from saccade_interventions.base import Grid, Level, Probe
from saccade_interventions.context import Context
from saccade_interventions.errors import Code, InterventionError
from saccade_interventions.indices import Indices
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.plan import Plan
from saccade_interventions.rules import SinkRule
from saccade_interventions.targets import OnImages, RowsAfterImage, Sited, inner_layers
from saccade_kernels.thresholds import default_threshold

NO_DIMS = (
    "no sink dimensions are known for this model; pass them as sink_dims, "
    "for example [1415, 2533] for Llama-2-7B, or as an artifact of kind sinks"
)


class VAR(Sited, OnImages):
    """Move attention from sink tokens to the image's other tokens, where a head looks at it."""

    title: ClassVar[str] = "Visual Attention Redistribution"
    summary: ClassVar[str] = (
        "Moves part of the attention on sink tokens to the image tokens that are no sinks, "
        "in the rows of heads that look at the image."
    )
    paper: ClassVar[str] = (
        "Kang et al., See What You Are Told: Visual Attention Sink in Large Multimodal Models, "
        "ICLR 2025, arXiv 2503.03321"
    )
    level: ClassVar[Level] = "attention_mass"
    example: ClassVar[dict[str, Any]] = {"method": "var", "move_fraction": 0.6}
    neutral: ClassVar[dict[str, Any] | None] = {"move_fraction": 0}
    grid: ClassVar[Grid] = (
        {},
        {"move_fraction": 0.9},
        {"move_fraction": 0.9, "rho": 0.1, "min_visual_mass": 0.05},
    )
    """More of what sinks hold is moved than by default; then in more heads."""

    method: Literal["var"] = "var"

    move_fraction: float = Field(0.4, ge=0, le=1)
    """p: the fraction of the attention on sinks that moves. 0 changes nothing."""

    # Both limits stay above zero: a row that does not see the image has no share to speak of.
    rho: float = Field(0.5, ge=1e-6, le=1)
    """Smallest share of non-sinks in a row's attention to the image."""

    min_visual_mass: float = Field(0.2, ge=1e-6, le=1)
    """Smallest attention to the image, sinks included, for a row to be edited."""

    tau: float | None = Field(None, gt=0, le=1000)
    """Sink threshold. None: 20 sqrt(hidden_size / 4096), which is the paper's 20 at size 4096."""

    sink_dims: Annotated[Indices, Field(max_length=16)] | None = None
    """Residual dimensions of the massive activations. None: those found on the served model."""

    artifact: ArtifactId | None = None
    """Take the dimensions from this artifact of kind sinks, in place of `sink_dims`."""

    require_visual_sink: bool = True
    """Leave a layer alone in which no image token is a sink, as the published code does."""

    sinks_in_generated: bool = False
    """Let generated tokens be sinks too; the paper looks at the prompt only."""

    include_last_layer: bool = False
    """Extend the default layers, which are 2 to the last but one, by the last."""

    # Rows of the image itself are never edited: with the prompt in chunks, whether a layer has a
    # visual sink is not known yet when they run.
    rows: RowsAfterImage = "question+generated"

    @model_validator(mode="after")
    def _last_layer_of_the_default(self) -> VAR:
        if self.include_last_layer and (self.layers is not None or isinstance(self.heads, dict)):
            raise PydanticCustomError(
                "layers_twice",
                "include_last_layer extends the default layers; list the last layer instead",
                {"at": "include_last_layer"},
            )
        return self

    @model_validator(mode="after")
    def _dimensions_from_one_place(self) -> VAR:
        if self.artifact is not None and self.sink_dims is not None:
            raise PydanticCustomError(
                "dimensions_twice",
                "the artifact has the sink_dims; leave one out",
                {"at": "artifact"},
            )
        return self

    @classmethod
    def probe(cls, model: ModelFacts) -> Probe:
        """Everything moves, wherever a sink is; the first token is one in the middle layers."""
        fields = {
            "move_fraction": 1,
            "require_visual_sink": False,
            "layers": [*range(model.layers)],
        }
        return Probe({"method": "var", "rho": 1e-6, "min_visual_mass": 1e-6, **fields})

    @classmethod
    def unsupported(cls, model: ModelFacts) -> str | None:
        return super().unsupported(model) or (None if model.sink_dims else NO_DIMS)

    def default_layers(self, model: ModelFacts) -> Sequence[int]:
        return inner_layers(model, first=2, last=0 if self.include_last_layer else 1)

    def compile(self, context: Context) -> Plan:
        plan = context.plan()
        # With one image chosen, the others are context like the text: their sinks give, too.
        text = 0
        visual = plan.tag(self.image_spans(context))
        visual_sink = plan.new_class()
        text_sink = plan.new_class()

        p, rho, sites = self.move_fraction, self.rho, self.sites(context)
        plan.mass(
            sites,
            moves=[
                (visual_sink, visual_sink, -p),
                (text_sink, text_sink, -p),
                (visual, visual_sink, p),
                (visual, text_sink, p),
            ],
            phases=self.phases,
            gates=[
                plan.gate({visual: 1, visual_sink: 1}, at_least=self.min_visual_mass),
                # m_VN >= rho (m_VN + m_VS), without a division
                plan.gate({visual: 1 - rho, visual_sink: -rho}, at_least=0),
            ],
        )
        plan.rule(
            SinkRule(
                threshold=self.tau or default_threshold(context.model.hidden_size),
                dims=self._dims(context),
                layers=tuple(layer for layer, _ in sites),
                remap=((visual, visual_sink), (text, text_sink)),
                require=visual_sink if self.require_visual_sink else None,
                generated=self.sinks_in_generated,
            )
        )
        return plan.build()

    def _dims(self, context: Context) -> tuple[int, ...]:
        model = context.model
        if self.artifact is not None:
            found = context.artifact(self.artifact, "sinks")
            return tuple(map(int, found.tensors["dims"]))
        if self.sink_dims is None:
            if not model.sink_dims:
                raise InterventionError(Code.UNSUPPORTED_MODEL, NO_DIMS, "sink_dims")
            return model.sink_dims
        for index, dim in enumerate(self.sink_dims):
            if dim >= model.hidden_size:
                message = f"there is no dimension {dim}; the residual has {model.hidden_size}"
                raise InterventionError(Code.INVALID_PARAMS, message, f"sink_dims[{index}]")
        return tuple(self.sink_dims)
