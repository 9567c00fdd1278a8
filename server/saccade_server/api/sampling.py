"""Sampling parameters with every default filled in, and the fan-out of a request into sequences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from msgspec.structs import replace

from saccade_server.api.access.standing import Standing
from saccade_server.api.body.schemas import Sampled
from saccade_server.api.choice import Choice
from saccade_server.api.errors import BadRequest
from saccade_server.api.generation import Generation
from saccade_server.api.ids import new_id, new_seed
from saccade_server.api.prompt_scores import PromptScoring
from saccade_server.api.rendering import check_tokens
from saccade_server.api.services import Services
from saccade_server.api.shape import Shape
from saccade_server.api.stops import StopStrings, also_as
from saccade_server.engine.request import SamplingParams
from saccade_server.requests.detection import Detection
from saccade_server.requests.limits import answer_length, check_group, check_min_tokens
from saccade_server.requests.prepared import Prepared, described
from saccade_server.requests.traces.resolve import TracePlan, check_bytes, check_plan, resolve
from saccade_server.requests.traces.scope import Scope

SEEDS = 2**63


def sampling_params(services: Services, body: Sampled, logprobs: int | None) -> SamplingParams:
    """Fill in what the request leaves out, but the length and the seed."""
    vocabulary = services.engine.info.vocab_size
    biases = {int(token): bias for token, bias in (body.logit_bias or {}).items()}
    if len(biases) < len(body.logit_bias or {}):
        raise BadRequest('A token is given twice, as in "7" and "07".', param="logit_bias")
    check_tokens(list(biases), vocabulary, "logit_bias")
    check_tokens(body.stop_token_ids or [], vocabulary, "stop_token_ids")

    def value(given: float | None, otherwise: float) -> float:
        return otherwise if given is None else given

    return SamplingParams(
        max_tokens=0,
        temperature=value(body.temperature, 1.0),
        top_p=value(body.top_p, 1.0),
        top_k=max(int(value(body.top_k, 0)), 0),
        min_p=value(body.min_p, 0.0),
        repetition_penalty=value(body.repetition_penalty, 1.0),
        presence_penalty=value(body.presence_penalty, 0.0),
        frequency_penalty=value(body.frequency_penalty, 0.0),
        stop_token_ids=_stop_tokens(services, body),
        ignore_eos=bool(body.ignore_eos),
        logit_bias=biases,
        logprobs=logprobs,
        min_tokens=body.min_tokens or 0,
    )


def generation(
    services: Services,
    body: Sampled,
    prompts: Sequence[Prepared],
    params: SamplingParams,
    max_tokens: int | None,
    stands: Standing,
    scoring: PromptScoring,
    shapes: Sequence[Shape],
    traces: tuple[TracePlan, ...] = (),
    detections: tuple[Detection, ...] = (),
) -> Generation:
    """Fan the prompts out into ``n`` sequences each, copy i with the seed plus i.

    The first copy reads the scores of their prompt; in a stream, where any may be the first to say
    something, each does. ``shapes`` are the prompts', as are ``traces`` and ``detections`` if they
    have any.
    """
    scoring.check(prompts, body.n or 1, max_tokens)
    stands.take_prompts(sum(prepared.length for prepared in prompts))
    first = new_seed(SEEDS) if body.seed is None else body.seed % SEEDS
    info = services.engine.info
    eos = () if params.ignore_eos else info.eos_token_ids
    ends = frozenset({*params.stop_token_ids, *eos})
    name = new_id()
    choices: list[Choice] = []
    shows = params.logprobs is not None
    if any(detection.blind is not None for detection in detections) and not shows:
        params = replace(params, logprobs=0)
    for prepared, shape, trace, detection in zip_longest(prompts, shapes, traces, detections):
        length = answer_length(prepared, max_tokens, info, body.length[1])
        sized = replace(params, max_tokens=length)
        check_min_tokens(sized, info)
        readings = (
            *(() if trace is None else trace.trace.readings),
            *(() if detection is None else detection.readings),
        )
        asked = stands.of(prepared.request("", sized, readings=readings))
        asked = replace(asked, grammar=shape.grammar)
        check_group(asked, info)
        for copy in range(body.n or 1):
            sampling = replace(params, max_tokens=length, seed=(first + copy) % SEEDS)
            request = replace(asked, request_id=f"{name}-{len(choices)}", sampling=sampling)
            if copy == 0 or body.stream:
                request = scoring.on(request)
            reader = None if shape.reader is None else shape.reader(prepared)
            shown = {} if reader is None else reader.shown
            decoder = services.prompts.detokenizer(request.tokens, shown)
            named = tuple(item.method_id() for item in prepared.interventions)
            written = {services.prompts.token_text(at)[0]: text for at, text in shown.items()}
            stops = StopStrings(also_as(body.stops, written))
            choices.append(
                Choice(
                    len(choices),
                    request,
                    decoder,
                    stops,
                    ends,
                    named,
                    trace,
                    detection,
                    shows,
                    reader,
                    shape.grammar_at,
                )
            )
    at_once = bool(body.stream or body.stops)
    read = (*traces, *(plan for detection in detections for plan in detection.plans))
    room = services.traces.room(read * (body.n or 1)) if read else None
    return Generation(services.engine, services.lifecycle, choices, stands, at_once, room)


def scope_of(services: Services, body: Sampled, prepared: Prepared, max_tokens: int) -> Scope:
    """What there is to trace of the answers to a prompt."""
    size, may_stop = services.engine.info.vocab_size, bool(body.stops)
    prompt = described(prepared.prompt)
    return Scope(services.facts, prompt, max_tokens, services.artifacts.finder(), size, may_stop)


async def trace_plans(
    services: Services, body: Sampled, prompts: Sequence[Prepared], max_tokens: int | None
) -> tuple[TracePlan, ...]:
    """What is traced of each prompt's answers; nothing if nothing was asked for.

    Raises:
        RequestError: something is not there, or there would be too much.
        InterventionError: an artifact that is not there, or another than is needed.
    """
    options = body.trace
    if options is None or not options.chosen():
        return ()
    info, field = services.engine.info, body.length[1]

    def work() -> tuple[TracePlan, ...]:
        plans = []
        for prepared in prompts:
            length = answer_length(prepared, max_tokens, info, field)
            scope = scope_of(services, body, prepared, length)
            plans.append(resolve(options, scope))
            check_plan(plans[-1], prepared.plan, services.facts)
        check_bytes(plans, body.n or 1, options, services.settings.max_trace_bytes)
        return tuple(plans)

    return await services.in_worker(work)


def check_request(services: Services, body: Sampled, prompts: int = 1) -> None:
    """Check what needs neither the model nor the prompt's content."""
    settings = services.settings
    services.check_model(body.model)
    n = body.n or 1
    if n > settings.max_n:
        raise BadRequest(f"n may be {settings.max_n} at most.", param="n")
    if prompts > settings.max_prompts:
        message = f"A request may have {settings.max_prompts} prompts."
        raise BadRequest(message, param="prompt")
    if n * prompts > settings.max_prompts:
        message = f"A request may ask for {settings.max_prompts} answers, n for each prompt."
        raise BadRequest(message, param="n")
    info = services.engine.info
    if n * prompts > info.max_num_seqs + info.max_waiting:
        raise BadRequest("This server cannot hold so many answers at once.", param="n")
    if body.stream_options is not None and not body.stream:
        raise BadRequest("stream_options needs stream: true.", param="stream_options")


def _stop_tokens(services: Services, body: Sampled) -> tuple[int, ...]:
    """The tokens that end an answer; among them stop texts that are a special token's name.

    As texts they would never be found, because special tokens have no text in an answer.
    """
    size = services.engine.info.vocab_size  # a tokenizer may know more
    named = map(services.prompts.special_token, body.stops)
    found = [token for token in named if token is not None and token < size]
    return tuple(dict.fromkeys([*(body.stop_token_ids or ()), *found]))
