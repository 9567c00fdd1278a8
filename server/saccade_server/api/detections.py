"""``detectors`` of a request: looked up before it runs, scored when a choice has ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from saccade_server.api.access.standing import as_of
from saccade_server.api.body.schemas import Sampled
from saccade_server.api.choice import Choice
from saccade_server.api.deadline import too_late
from saccade_server.api.errors import EngineFailure
from saccade_server.api.layers.observe import error_log
from saccade_server.api.sampling import scope_of
from saccade_server.api.services import Services
from saccade_server.detectors.base import Detector
from saccade_server.engine.request import FinishReason
from saccade_server.logs.context import request_id
from saccade_server.requests.detection import Blind, Detection, Watched, prepare_detection
from saccade_server.requests.limits import answer_length
from saccade_server.requests.prepared import Prepared
from saccade_server.requests.scores import ScoreLog
from saccade_server.requests.traces.joining import TraceLostError


async def detections(
    services: Services,
    body: Sampled,
    detectors: Sequence[Detector],
    prompts: Sequence[Prepared],
    max_tokens: int | None,
) -> tuple[Detection, ...]:
    """What detectors read of each prompt's answers; nothing without detectors.

    Raises:
        RequestError: something is not there, or there would be too much.
        InterventionError: an artifact that is not there, or another than is needed.
    """
    if not detectors:
        return ()
    info, field = services.engine.info, body.length[1]
    most = services.settings.max_trace_bytes // (len(prompts) * (body.n or 1))

    def work() -> tuple[Detection, ...]:
        found = []
        for prompt in prompts:
            length = answer_length(prompt, max_tokens, info, field)
            scope = scope_of(services, body, prompt, length)
            token_of = services.prompts.token_of
            found.append(prepare_detection(detectors, scope, prompt, token_of, most))
        return tuple(found)

    return await services.in_worker(work)


async def detected(services: Services, choice: Choice, watched: Watched) -> list[dict[str, Any]]:
    """What the detectors of a choice that has ended found.

    Raises:
        EngineFailure: the engine left out something that was asked for.
    """
    tokens, blind = tuple(watched.tokens), watched.detection.blind
    without = [] if blind is None or not tokens else await _without(services, choice, blind, tokens)
    drawn = choice.completion_tokens

    def work() -> list[dict[str, Any]]:
        texts = [services.prompts.token_text(token)[0] for token in tokens]
        return watched.results(drawn, texts, without)

    try:
        return await services.in_worker(work)
    except TraceLostError as error:
        error_log.error("request %s: a trace is not whole: %s", request_id.get(), error)
        raise EngineFailure() from error


async def _without(
    services: Services, choice: Choice, blind: Blind, tokens: tuple[int, ...]
) -> list[float]:
    """Log-probabilities of the tokens behind the prompt without its images."""
    own = choice.request
    asked = blind.request(f"{own.request_id}-blind", tokens, own.cache_salt)
    request = as_of(own, asked)
    log = ScoreLog.of(request)
    assert log is not None, "it asks for scores"
    async for output in services.engine.submit(request):
        log.take(output.trace)
        if output.finish_reason is FinishReason.LATE:
            raise too_late()
        if output.finish_reason is FinishReason.ERROR:
            error_log.error("request %s: engine: %s", request_id.get(), output.error)
            raise EngineFailure()
    return [entry.logprob for entry in log.entries()]
