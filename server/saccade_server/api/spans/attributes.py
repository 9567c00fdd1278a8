"""What spans say of a request, by OpenTelemetry's conventions for HTTP and generative AI.

What those have no name for is ``saccade.*``. All comes from the request's record, which holds no
prompt, image or key; of what clients write freely there is the path alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from saccade_server.api.layers.access_line import shown_client, shown_path
from saccade_server.api.layers.record import Record, SequenceRecord
from saccade_server.logs.lines import one_line

Value = str | bool | int | float | Sequence[str]

OPERATIONS: Mapping[str, str] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/score": "score",
}
LONGEST = 256


def at_start(record: Record) -> dict[str, Value]:
    """What is known, and may decide about sampling, when a request begins."""
    found = {
        "http.request.method": record.method,
        "url.path": shown_path(record),
        "client.address": shown_client(record),
    }
    return {name: _text(value) for name, value in found.items()}


def at_end(record: Record) -> dict[str, Value]:
    """What is known of a request once it has ended."""
    values: dict[str, Value] = {
        "http.response.status_code": record.status,
        "http.response.body.size": record.bytes,
        "saccade.request_id": record.id,
    }
    named = {
        "http.route": record.route,
        "saccade.key_name": record.key,
        "error.type": failed(record),
    }
    values |= {name: _text(value) for name, value in named.items() if value}
    return values | (_answer(record) if record.model else {})


def of_sequence(index: int, sequence: SequenceRecord) -> dict[str, Value]:
    """What each span of a sequence says."""
    return {
        "saccade.sequence": index,
        "gen_ai.usage.input_tokens": sequence.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": sequence.cached_tokens,
        "gen_ai.usage.output_tokens": sequence.completion_tokens,
    }


def failed(record: Record) -> str:
    """What a request failed of: the error's code, or the status; "" if it did not."""
    if record.error:
        return record.error
    return str(record.status) if record.status >= 400 else ""


def _answer(record: Record) -> dict[str, Value]:
    values: dict[str, Value] = {
        "gen_ai.operation.name": OPERATIONS.get(record.route, "other"),
        "gen_ai.provider.name": "saccade",
        "gen_ai.request.model": _text(record.model),
        "gen_ai.request.stream": record.stream,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "saccade.images": record.images,
    }
    if record.n:
        values["gen_ai.request.choice.count"] = record.n
        reasons = [each.finish_reason for each in record.sequences]
        values["gen_ai.response.finish_reasons"] = reasons
        values["gen_ai.request.max_tokens"] = max(each.max_tokens for each in record.sequences)
    if record.first_token:
        values["gen_ai.response.time_to_first_chunk"] = record.first_token - record.began
    if record.profile:
        values["saccade.profile"] = _text(record.profile)
    if record.grammar:
        values["saccade.grammar"] = record.grammar
        values["saccade.forced_tokens"] = sum(each.forced for each in record.sequences)
    if record.interventions:
        values["saccade.interventions"] = [_text(each) for each in record.interventions]
    if record.lost:
        values["saccade.lost_interventions"] = [_text(each) for each in record.lost]
    passes = sum(record.extra_passes.values())
    return values | ({"saccade.extra_passes": passes} if passes else {})


def _text(value: str) -> str:
    return one_line(value, LONGEST)
