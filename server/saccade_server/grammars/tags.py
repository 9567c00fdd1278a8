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
    ``separator`` between them; or it is one of ``instead``, which are parts of a source.

    With triggers, texts that tags begin with, there is free text before each tag, and a text that a
    trigger ends goes on as one of its tags does. Behind a tag there is free text and there are more
    tags if they may be ``repeated``; else the answer ends there. Free text has no trigger in it.

    Raises GrammarError, its path an index of ``tags`` and then a path within its schema.
    """
    if not tags:
        raise GrammarError("There must be at least one tag.")
    if triggers:
        rules = _free(tags, triggers, required, repeated)
        cuts = [len(trigger) for trigger in _triggers_of(tags, triggers)]
    else:
        rules = _alone(tags, required, repeated, separator, instead)
        cuts = [0] * len(tags)
    rules += [_rule(index, tag, cuts[index], layout) for index, tag in enumerate(tags)]
    source = HEADER + "".join(f"{rule}\n" for rule in rules)
    check(source)
    return source


def _rule(index: int, tag: Tag, cut: int, layout: Layout) -> str:
    """How a tag goes on behind the first ``cut`` characters."""
    try:
        schema = json_part(tag.schema, layout)
    except GrammarError as error:
        raise error.below(index) from None
    parts = (quoted(tag.begin[cut:]), schema, quoted(tag.end))
    return f"tag_{index}: " + " ".join(part for part in parts if part)


def _alone(
    tags: Sequence[Tag], required: bool, repeated: bool, separator: str, instead: Sequence[str]
) -> list[str]:
    more = f" ({quoted(separator)} tag)*" if repeated else ""
    body = f"tag{more}"
    return [
        "start: " + " | ".join([body if required else f"({body})?", *instead]),
        "tag: " + " | ".join(f"tag_{index}" for index in range(len(tags))),
    ]


def _free(
    tags: Sequence[Tag], triggers: Sequence[str], required: bool, repeated: bool
) -> list[str]:
    found: dict[str, list[int]] = {}
    for index, trigger in enumerate(_triggers_of(tags, triggers)):
        found.setdefault(trigger, []).append(index)
    if repeated:
        start = f"start: free{'+' if required else '*'} last"
    else:
        start = "start: free" if required else "start: free | last"
    none = " ".join(f"& ~(TEXT {quoted(trigger)} TEXT)" for trigger in triggers)
    rules = [start, "last: LAST", "TEXT: /(?s:.*)/", f"LAST: TEXT {none}"]
    rules.append("free: " + " | ".join(f"free_{number}" for number in range(len(found))))
    for number, (trigger, own) in enumerate(found.items()):
        rules.append(f"until_{number}[lazy]: TEXT {quoted(trigger)}")
        rules.append(f"free_{number}: until_{number} ({' | '.join(f'tag_{i}' for i in own)})")
    return rules


def _triggers_of(tags: Sequence[Tag], triggers: Sequence[str]) -> list[str]:
    """The trigger that each tag begins with."""
    found: list[str] = []
    for index, tag in enumerate(tags):
        own = [trigger for trigger in triggers if trigger and tag.begin.startswith(trigger)]
        if not own:
            raise GrammarError("No trigger begins this tag's text.", (index,))
        found.append(own[0])
    return found
