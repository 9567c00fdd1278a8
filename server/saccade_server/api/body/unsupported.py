"""What is refused because accepting it would mean silently not doing it.

Unknown fields are accepted and named in a header (:mod:`~saccade_server.api.body.noeffect`), as
OpenAI SDKs send new ones all the time, with two exceptions: features that change the answer and
that this server lacks, unless they are set to what it does anyway; and names that look like a
misspelt ``interventions``, ``trace``, ``detectors``, ``response_format``, ``structured_outputs``
or ``tools``, for which the answer would come back without.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sized
from functools import lru_cache
from typing import Any

from saccade_interventions.errors import brief
from saccade_server.api.body.foreign import (
    GUIDED,
    INSTEAD,
    NOTHING,
    NULL_ONLY,
    THINKING,
    UNCALLED,
)
from saccade_server.api.errors import BadRequest, bounded, unsupported

OTHER_NAMES = frozenset(
    {
        "attention",
        "attention_control",
        "attention_steering",
        "control",
        "controller",
        "controllers",
        "controls",
        "edits",
        "extra_body",
        "hook",
        "hooks",
        "intervene",
        "method",
        "methods",
        "plan",
        "profile",
        "steer",
        "steer_vector_request",
        "steering",
        "steering_vector",
        "steering_vectors",
    }
)
TRACES = frozenset(
    {
        "attention_maps",
        "output_attentions",
        "output_hidden_states",
        "return_attention",
        "return_attentions",
        "return_trace",
        "return_traces",
        "trace_options",
        "traced",
        "traces",
        "tracing",
    }
)
"""Names that were probably meant to be ``trace``."""
DETECTORS = frozenset({"detect", "detection", "detections", "detector", "detector_options"})
"""Names that were probably meant to be ``detectors``."""
FORMS = frozenset(
    {
        "choice",
        "choices",
        "format",
        "guided",
        "json_mode",
        "json_object",
        "nvext",
        "output_format",
        "output_schema",
        "response_model",
        "response_schema",
        "responseformat",
        "schema",
        "structured",
        "structuredoutputs",
        "text_format",
    }
)
"""Names that were probably meant to say what the answer must be."""
CALLS = frozenset(
    {"allowed_tools", "function", "tool", "tool_config", "toolchoice", "toolconfig", "tools_choice"}
)
"""Names that were probably meant to offer tools."""
MEANT_OF_ANSWERS = {
    FORMS: 'what the answer must be is given as the top-level field "response_format" or '
    '"structured_outputs".',
    CALLS: 'tools are given as the top-level fields "tools" and "tool_choice".',
}
RESEMBLED = {"response_format": FORMS, "structured_outputs": FORMS, "tool_choice": CALLS}
MEANT = {
    TRACES: 'what is to be recorded is given as the top-level field "trace", an object of kinds.',
    DETECTORS: 'detectors are given as the top-level field "detectors", a list of objects with a '
    '"name".',
}
CLOSE_ENOUGH = 0.75
CLOSER = 0.85
"""For names that have words of many others in them."""
MOST_UNKNOWN = 100


def refuse_unsupported(
    extra: Mapping[str, Any], known: Mapping[str, tuple[Any, ...]], thinks: bool = False
) -> None:
    """Refuse the fields of ``extra`` that ask for what is not done.

    ``thinks``: the model may think before it answers, so asking it not to asks for something.
    """
    _refuse_many(extra)
    refuse_near_misses(name for name, value in extra.items() if value not in (None, {}))
    for name, value in extra.items():
        if value not in NOTHING and name not in known:
            _refuse_meant(name, MEANT_OF_ANSWERS, _resembled(name))
    for name, value in extra.items():
        harmless = () if name.startswith(GUIDED) else known.get(name)
        if name in UNCALLED and extra.get(UNCALLED[name]) == "none":
            continue
        if thinks and name in THINKING:
            if value is not None:
                message = (
                    f"{name} is not supported by this server; how much the model thinks is said in "
                    "chat_template_kwargs."
                )
                raise unsupported(name, message)
        elif harmless is not None and not _asks_nothing(value, harmless):
            hint = f" Give {INSTEAD[name]}." if name in INSTEAD else ""
            raise unsupported(name, f"{name} is not supported by this server.{hint}")


def named_as_known(extra: Mapping[str, Any], known: Mapping[str, tuple[Any, ...]]) -> set[str]:
    """Fields of ``extra`` that the server knows and that ask for nothing: no answer names them."""
    offered = {name for name in UNCALLED if extra.get(name)}
    empty = {name for name in extra if name.startswith(GUIDED) and extra[name] in NOTHING}
    return {name for name in extra if name in known} - offered | empty


def refuse_near_misses(names: Iterable[str]) -> None:
    """Refuse names that were probably meant to be ``interventions``, ``trace`` or ``detectors``."""
    for name in names:
        _refuse_meant(name, MEANT)
        if _another_name(name) or _resembles(name):
            raise BadRequest(
                f"Unknown field {brief(name)}: interventions are given as the top-level "
                'field "interventions", a list of objects with a "method".',
                code="intervention_unknown_field",
                param=bounded(name, 64),
            )


def _refuse_meant(
    name: str, meant: Mapping[frozenset[str], str], resembled: frozenset[str] | None = None
) -> None:
    for others, said in meant.items():
        if _plain(name) in others or others is resembled:
            message = f"Unknown field {brief(name)}: {said}"
            raise BadRequest(message, code="unknown_field", param=bounded(name, 64))


def refuse_misplaced(value: Mapping[str, Any]) -> None:
    """Refuse interventions in a body's messages and metadata, where nothing reads them.

    Only names that resemble ``interventions`` count: metadata may well name a plan or a method.
    """
    inner = {name: value.get(name) for name in ("messages", "metadata")}
    for path, item in _objects(inner):
        _refuse_many(item, path)
        for name in item:
            if isinstance(name, str) and _resembles(name):
                message = 'interventions are given as the top-level field "interventions".'
                where = f"{path}.{bounded(name, 64)}"
                raise BadRequest(message, code="intervention_unknown_field", param=where)


def _objects(value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every message, content part and image_url of a body, and its metadata, with its path."""
    if isinstance(value.get("metadata"), dict):
        yield "metadata", value["metadata"]
    for path, message in _listed(value.get("messages"), "messages"):
        yield path, message
        for spot, part in _listed(message.get("content"), f"{path}.content"):
            yield spot, part
            if isinstance(part.get("image_url"), dict):
                yield f"{spot}.image_url", part["image_url"]


def _listed(items: object, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for at, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, dict):
            yield f"{path}[{at}]", item


def _refuse_many(names: Sized, param: str | None = None) -> None:
    if len(names) > MOST_UNKNOWN:
        raise BadRequest(f"There are more than {MOST_UNKNOWN} unknown fields.", param=param)


def _plain(name: str) -> str:
    return name[:64].lower().replace("-", "_").strip("_ ")


def _another_name(name: str) -> bool:
    return _plain(name) in OTHER_NAMES


@lru_cache(maxsize=1024)
def _resembles(name: str) -> bool:
    return "intervention" in name.lower() or _alike(name, "interventions", CLOSE_ENOUGH)


@lru_cache(maxsize=1024)
def _resembled(name: str) -> frozenset[str] | None:
    """What a name was probably meant to be, by how it is spelled."""
    found = (others for known, others in RESEMBLED.items() if _alike(name, known, CLOSER))
    return next(found, None)


def _alike(name: str, known: str, least: float) -> bool:
    match = difflib.SequenceMatcher(None, _plain(name), known)
    # The first two are bounds from above, and cheap.
    ratios = (match.real_quick_ratio, match.quick_ratio, match.ratio)
    return all(ratio() > least for ratio in ratios)


def _asks_nothing(value: Any, harmless: tuple[Any, ...]) -> bool:
    if harmless is NULL_ONLY:
        return value is None
    # Where True is the default, False asks for something.
    by_default = any(item is True for item in harmless)
    allowed = (None, True) if by_default else (*NOTHING, *harmless)
    # In Python 0 == False and 1 == True; here they differ.
    same_kind = [item for item in allowed if isinstance(item, bool) == isinstance(value, bool)]
    return value in same_kind
