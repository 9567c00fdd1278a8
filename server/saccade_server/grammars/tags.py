"""Parts of an answer that must follow schemas, in an answer that is otherwise free, or not free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saccade_server.grammars.checking import check
from saccade_server.grammars.errors import GrammarError
from saccade_server.grammars.json_schema import LAYOUT, Layout, json_part
from saccade_server.grammars.schema_reader import Schema
from saccade_server.grammars.source import HEADER, quoted


@dataclass(frozen=True)
class Tag:
    """A part: the text before it, the JSON inside, the text behind.

    ``begin`` and ``end`` may be empty, if all there is are tags (no text between them).
    """

    begin: str
    schema: Schema
    end: str


def of_tags(
    tags: Sequence[Tag],
    *,
    triggers: Sequence[str] = (),
    required: bool = True,
    repeated: bool = False,
    separator: str = "",
    layout: Layout = LAYOUT,
    instead: Sequence[str] = (),
) -> str:
    """The source of a grammar of answers with tags.

    Without ``triggers`` an answer is tags alone: one (``required``) or none, more if ``repeated``,
    ``separator`` between them; or it is one of ``instead``, which are parts of a source. With
    triggers, texts that tags begin with, there is free text before and behind each tag, and a text
    that a trigger ends goes on as one of its tags does.
    Raises GrammarError, its path an index of ``tags`` and then a path within its schema.
    """
    if not tags:
        raise GrammarError("There must be at least one tag.")
    if triggers:
        source = HEADER + _free(tags, triggers, required, repeated, separator, layout)
    else:
        source = HEADER + _alone(tags, required, repeated, separator, layout, instead)
    check(source)
    return source


def _alone(
    tags: Sequence[Tag],
    required: bool,
    repeated: bool,
    separator: str,
    layout: Layout,
    instead: Sequence[str],
) -> str:
    more = f"({quoted(separator)} tag)*" if repeated else ""
    body = f"tag {more}".strip()
    lines = ["start: " + " | ".join([body if required else f"({body})?", *instead])]
    lines.append("tag: " + " | ".join(f"tag_{index}" for index in range(len(tags))))
    for index, tag in enumerate(tags):
        parts = (quoted(tag.begin), json_part(tag.schema, layout), quoted(tag.end))
        lines.append(f"tag_{index}: " + " ".join(part for part in parts if part))
    return "\n".join(lines) + "\n"


def _free(
    tags: Sequence[Tag],
    triggers: Sequence[str],
    required: bool,
    repeated: bool,
    separator: str,
    layout: Layout,
) -> str:
    found: dict[str, list[tuple[int, Tag]]] = {trigger: [] for trigger in triggers}
    for index, tag in enumerate(tags):
        trigger = next((text for text in triggers if tag.begin.startswith(text)), None)
        if not trigger:
            raise GrammarError("No trigger begins this tag's text.", (index,))
        found[trigger].append((index, tag))
    times = ("+" if required else "*") if repeated else ("" if required else "?")
    lines = [f"start: free{times} tail", "tail: TEXT" if repeated else "tail: LAST"]
    lines.append("TEXT: /(?s:.*)/")
    if not repeated:  # a second part would be text that no schema holds
        none = " ".join(f"& ~(TEXT {quoted(trigger)} TEXT)" for trigger in triggers)
        lines.append(f"LAST: TEXT {none}")
    used = [(number, of) for number, of in enumerate(found.items()) if of[1]]
    lines.append("free: " + " | ".join(f"free_{number}" for number, _ in used))
    for number, (trigger, own) in used:
        lines.append(f"until_{number}[lazy]: TEXT {quoted(trigger)}")
        lines.append(f"free_{number}: until_{number} ({' | '.join(f'tag_{i}' for i, _ in own)})")
        for index, tag in own:
            rest = quoted(tag.begin[len(trigger) :])
            parts = (rest, json_part(tag.schema, layout), quoted(tag.end))
            lines.append(f"tag_{index}: " + " ".join(part for part in parts if part))
    return "\n".join(lines) + "\n"
