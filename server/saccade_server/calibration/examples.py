"""Labelled prompts, one JSON object a line:

    {"prompt": "Is there a red circle?", "image": "images/1.png", "label": "Yes."}
    {"messages": [{"role": "user", "content": "..."}], "images": ["a.png", "b.png"], "label": true}
    {"prompt": "Is there a red circle?", "image": "1.png", "label": "negative", "answer": "Yes."}

``prompt`` is one user message, ``messages`` a conversation of texts. Images are files, relative to
the JSONL file, shown before the first user message's text. What ``label`` means is the command's:
the right answer's text for ``act`` and ``heads``; for ``vectors`` the class, positive or negative
(also true and false, 1 and 0). ``answer`` says what is right where the label does not. A
conversation that ends with the assistant's message is read at that message's last token, or
continued there; any other is read at the last token of the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from saccade_server.evaluation.errors import EvaluationError
from saccade_server.evaluation.images import file_url

if TYPE_CHECKING:
    from saccade_server.models.conversation import Message

ROLES = ("system", "developer", "user", "assistant")
FIELDS = frozenset({"prompt", "messages", "image", "images", "label", "answer"})
CLASSES = {"positive": True, "true": True, "1": True, "negative": False, "false": False, "0": False}


class CalibrationError(EvaluationError):
    """The prompts, the labels or the model do not allow it; the message names the place."""


@dataclass(frozen=True)
class Labelled:
    """One line. ``place`` is file and line, for messages about it. ``answer``: the right one."""

    place: str
    turns: tuple[tuple[str, str], ...]  # (role, text)
    images: tuple[Path, ...]
    label: str
    answer: str | None = None

    @property
    def right(self) -> str:
        """What is right: the answer, or the label where labels are answers."""
        return self.label if self.answer is None else self.answer

    @property
    def said(self) -> str | None:
        """The assistant's message, if the conversation ends with one."""
        role, text = self.turns[-1]
        return text if role == "assistant" else None

    def as_chat(self) -> list[dict[str, Any]]:
        """The messages of a chat request.

        Raises:
            CalibrationError: an image cannot be read.
        """
        shown = [self._read(path, file_url) for path in self.images]
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in shown]
        return [
            {"role": role, "content": [*images, {"type": "text", "text": text}]}
            if images
            else {"role": role, "content": text}
            for role, text, images in self._with_images(parts)
        ]

    def as_messages(self) -> list[Message]:
        """The messages of a rendered prompt, images decoded.

        Raises:
            CalibrationError: an image cannot be read.
        """
        from saccade_server.models.conversation import Message

        shown = [self._read(path, _open) for path in self.images]
        return [Message(role, (*images, text)) for role, text, images in self._with_images(shown)]

    def _with_images(self, images: Sequence[Any]) -> list[tuple[str, str, Sequence[Any]]]:
        first = next((at for at, (role, _) in enumerate(self.turns) if role == "user"), 0)
        return [
            (role, text, images if at == first else ())
            for at, (role, text) in enumerate(self.turns)
        ]

    def _read(self, path: Path, reader: Any) -> Any:
        try:
            return reader(path)
        except (OSError, Image.DecompressionBombError) as error:
            raise CalibrationError(f"{self.place}: the image {path}: {error}") from None


def read_examples(path: Path) -> list[Labelled]:
    """Every line of a file; empty lines are skipped.

    Raises:
        CalibrationError: there is no such file, or a line is not as it should be.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{path}: {error}") from None
    found = [
        _example(line, f"{path}:{number}", path.parent)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not found:
        raise CalibrationError(f"{path}: there are no prompts in it")
    return found


def classes(
    examples: Sequence[Labelled], positive: str | None = None, at_least: int = 1
) -> list[bool]:
    """The class of each example: whether its label is ``positive``, or says so itself.

    Raises:
        CalibrationError: a label is no class, or a class has fewer than ``at_least`` examples.
    """
    found = []
    for example in examples:
        if positive is not None:
            found.append(example.label == positive)
        elif example.label.lower() in CLASSES:
            found.append(CLASSES[example.label.lower()])
        else:
            message = (
                f"{example.place}: the label {example.label[:40]!r} is neither positive nor "
                "negative; say with --positive which label is positive"
            )
            raise CalibrationError(message)
    if len(set(found)) < 2:
        which = "positive" if found[0] else "negative"
        raise CalibrationError(f"all {len(found)} labels are {which}; both classes are needed")
    if min(sum(found), len(found) - sum(found)) < at_least:
        message = f"{sum(found)} positive and {len(found) - sum(found)} negative prompts"
        raise CalibrationError(f"{message}; at least {at_least} of each class are needed")
    return found


def _example(line: str, place: str, folder: Path) -> Labelled:
    try:
        entry = json.loads(line)
        json.dumps(entry, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise CalibrationError(f"{place}: it holds a lone surrogate, which is not text") from None
    except (ValueError, RecursionError) as error:
        raise CalibrationError(f"{place}: not JSON: {error}") from None
    if not isinstance(entry, dict):
        raise CalibrationError(f"{place}: a line is a JSON object")
    if unknown := sorted(entry.keys() - FIELDS):
        known = ", ".join(sorted(FIELDS))
        raise CalibrationError(f"{place}: unknown field {unknown[0]!r}; known: {known}")
    if ("prompt" in entry) == ("messages" in entry):
        raise CalibrationError(f"{place}: give prompt or messages, one of them")
    images = _images(entry, place, folder)
    label, answer = _label(entry.get("label"), place), _answer(entry.get("answer"), place)
    return Labelled(place, _turns(entry, place), images, label, answer)


def _turns(entry: dict[str, Any], place: str) -> tuple[tuple[str, str], ...]:
    if "prompt" in entry:
        if not isinstance(entry["prompt"], str) or not entry["prompt"]:
            raise CalibrationError(f"{place}: prompt is a text")
        return (("user", entry["prompt"]),)
    messages = entry["messages"]
    if not isinstance(messages, list) or not messages:
        raise CalibrationError(f"{place}: messages is a list of objects with role and content")
    turns = []
    for message in messages:
        fields = message if isinstance(message, dict) else {}
        role, content = fields.get("role"), fields.get("content")
        if role not in ROLES or not isinstance(content, str) or len(fields) > 2:
            raise CalibrationError(
                f"{place}: a message has a role ({', '.join(ROLES)}) and content, a text"
            )
        turns.append((str(role), content))
    return tuple(turns)


def _images(entry: dict[str, Any], place: str, folder: Path) -> tuple[Path, ...]:
    if "image" in entry and "images" in entry:
        raise CalibrationError(f"{place}: give image or images, one of them")
    listed = [entry["image"]] if "image" in entry else entry.get("images", [])
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise CalibrationError(f"{place}: images are names of files")
    paths = tuple(folder / name for name in listed)
    for path in paths:
        if not path.is_file():
            raise CalibrationError(f"{place}: there is no file {path}")
        _check_kind(path, place)
    return paths


def _check_kind(path: Path, place: str) -> None:
    """Refuse what does not begin as an image, before a model loads; nothing is decoded."""
    try:
        Image.open(path).close()
    except (OSError, Image.DecompressionBombError) as error:
        raise CalibrationError(f"{place}: the image {path}: {error}") from None


def _label(value: Any, place: str) -> str:
    """The label as text."""
    if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
        return str(value).lower()
    if not isinstance(value, str) or not value.strip():
        raise CalibrationError(f"{place}: label is a text, true or false")
    return value


def _answer(value: Any, place: str) -> str | None:
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise CalibrationError(f"{place}: answer is a text")
    return value


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
