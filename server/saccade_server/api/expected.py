"""What an operator expects of a server's deployment: its digest, or a file that has its facts.

The file is what ``GET /v1/deployment`` of a server answered that is as it should be. With it, a
refusal says what differs; with the digest alone, only that something does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saccade_server.api.deployment import DIGITS, Deployment

DIGEST = re.compile(rf"[0-9a-f]{{{DIGITS}}}")
MOST_SHOWN = 3
LONGEST_VALUE = 80


class DeploymentError(ValueError):
    """A server is not what was expected of it, or what was expected cannot be understood."""


@dataclass(frozen=True)
class Expected:
    """A digest, and the facts that it is of if they are known."""

    digest: str
    facts: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, given: str) -> Expected:
        """Read a digest, or the file of that name.

        Raises:
            DeploymentError: it is neither.
        """
        if DIGEST.fullmatch(given):
            return cls(given)
        wanted = f"give {DIGITS} hexadecimal digits, or a file of what GET /v1/deployment answers"
        try:
            content = json.loads(Path(given).read_text("utf-8"))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "is not JSON"
            raise DeploymentError(f"--expect-deployment {given}: {reason}; {wanted}") from None
        digest = content.get("deployment") if isinstance(content, dict) else None
        facts = content.get("facts") if isinstance(content, dict) else None
        if not (isinstance(digest, str) and DIGEST.fullmatch(digest) and isinstance(facts, dict)):
            raise DeploymentError(f"--expect-deployment {given}: {wanted}")
        if Deployment(facts).digest != digest:
            changed = "its digest is not of its facts: it was changed by hand"
            raise DeploymentError(f"--expect-deployment {given}: {changed}; {wanted}")
        return cls(digest, facts)

    def check(self, found: Deployment) -> None:
        """Refuse a server that is another.

        Raises:
            DeploymentError: with what differs, if that is known.
        """
        if found.digest == self.digest:
            return
        message = f"this server is of the deployment {found.digest}, expected is {self.digest}"
        if self.facts is None:
            hint = "GET /v1/deployment of a server that is right shows what it is made of"
            raise DeploymentError(f"{message}; {hint}")
        different = list(differences(self.facts, found.facts))
        more = len(different) - MOST_SHOWN
        shown = "; ".join(different[:MOST_SHOWN]) + (f"; and {more} more" if more > 0 else "")
        raise DeploymentError(f"{message}: {shown}")


def differences(expected: object, found: object, path: str = "") -> Iterator[str]:
    """A line for each fact that differs: where it is, what it is, what it should be."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for name in sorted(expected.keys() | found.keys()):
            inner = f"{path}.{name}" if path else name
            yield from differences(expected.get(name), found.get(name), inner)
    elif json.dumps(expected) != json.dumps(found):
        yield f"{path} is {_brief(found)}, not {_brief(expected)}"


def _brief(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "…"
