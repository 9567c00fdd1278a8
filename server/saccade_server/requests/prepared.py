"""From a rendered prompt and its interventions to what the engine is asked for.

    prepared = prepare(prompt, interventions, model, artifacts)   # plan and branches
    request = prepared.request(name, sampling)                    # for the engine

Whether this server can run it, say the checks of limits.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from saccade_interventions.artifacts import Artifact
from saccade_interventions.base import Intervention
from saccade_interventions.compose import compile_plan
from saccade_interventions.context import Context, Prompt
from saccade_interventions.image_views import ImageView
from saccade_interventions.model_facts import ModelFacts
from saccade_interventions.plan import Plan
from saccade_server.engine.request import BranchInput, GenerateRequest, SamplingParams
from saccade_server.engine.traces.data import AnyReading, DivergenceReading, Trace
from saccade_server.models.prompt import RenderedPrompt
from saccade_server.requests.branches import branches_of, image_input, traced_branch


@dataclass(frozen=True)
class Prepared:
    """A prompt with all that its interventions ask of the engine.

    ``interventions`` are those of the request, resolved (:meth:`Intervention.resolved`).
    """

    prompt: RenderedPrompt
    plan: Plan | None = None
    branches: tuple[BranchInput, ...] = ()
    interventions: tuple[Intervention, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of the prompt, images expanded."""
        return len(self.prompt.tokens)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Those of the prompt, images expanded."""
        return self.prompt.tokens

    def request(
        self,
        request_id: str,
        sampling: SamplingParams,
        cache_salt: str = "",
        readings: tuple[AnyReading, ...] = (),
    ) -> GenerateRequest:
        """One answer to it, of which these are read, with the branch that some compare with.

        Raises:
            RequestError: nothing of the prompt is left in that branch.
        """
        compared = tuple(r for r in readings if isinstance(r, DivergenceReading))
        beside = (traced_branch(self.plan, self.prompt, compared),) if compared else ()
        return GenerateRequest(
            request_id=request_id,
            tokens=tuple(self.tokens),
            sampling=sampling,
            images=tuple(map(image_input, self.prompt.images)),
            plan=self.plan,
            branches=(*self.branches, *beside),
            cache_salt=cache_salt,
            trace=Trace(readings) if readings else None,
        )


def prepare(
    prompt: RenderedPrompt,
    interventions: Sequence[Intervention],
    model: ModelFacts,
    artifacts: Callable[[str], Artifact | None] | None = None,
) -> Prepared:
    """Compile interventions for a prompt, and make the branches that their plan asks for.

    ``artifacts`` finds an artifact by its digest; if that reads files, so does this.

    Raises:
        InterventionError: the model or the prompt does not allow one of them.
    """
    if not interventions:
        return Prepared(prompt)
    context = Context(model, described(prompt), artifacts)
    plan = compile_plan(interventions, context)
    resolved = tuple(item.resolved(context) for item in interventions)
    return under(plan, prompt, resolved)


def under(
    plan: Plan | None, prompt: RenderedPrompt, interventions: tuple[Intervention, ...] = ()
) -> Prepared:
    """A prompt under a plan that was made for it.

    Raises:
        InterventionError: nothing of the prompt is left in a branch.
    """
    return Prepared(prompt, plan, branches_of(plan, prompt), interventions)


def described(prompt: RenderedPrompt) -> Prompt:
    """A rendered prompt in the words of the interventions."""
    return Prompt(
        length=len(prompt.tokens),
        images=prompt.spans,
        text=prompt.text,
        offsets=prompt.offsets,
        image_numbers=prompt.image_numbers,
        views=tuple(_views(prompt)),
    )


def _views(prompt: RenderedPrompt) -> Iterator[ImageView]:
    for number, view in zip(prompt.image_numbers, prompt.images, strict=True):
        cells, size = view.cells, view.size
        if cells is not None and size is not None:
            yield ImageView(
                image=number,
                span=view.span,
                rows=cells.rows,
                columns=cells.columns,
                size=size,
                lead=cells.lead,
                gap=cells.gap,
                box=cells.box,
            )
