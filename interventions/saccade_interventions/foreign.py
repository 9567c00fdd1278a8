"""Rules and edits that the engine has no code for: what a plug-in must not bring."""

from __future__ import annotations


class ForeignError(TypeError):
    """Something in a plan is not of the kinds that the engine carries out; says which kind it is.

    The engine runs in a process of its own and knows its rules and edits by name. An unknown one
    could not be sent there; one that only looks like a known one would lose what it adds.
    """

    def __init__(self, what: str, kind: type) -> None:
        super().__init__(
            f"brings {what} of its own, {named(kind)}: rules and edits are carried out by the "
            "engine's own code, and a method may use those that there are"
        )
        self.kind = kind


def named(kind: type) -> str:
    """A class in a message, with its module."""
    return f"{kind.__module__}.{kind.__qualname__}"
