"""What Ray keeps for a whole cluster, in memory."""


class Kept:
    """See :class:`saccade_server.cluster.agreement.Notes`; whoever is not ``dead`` lives."""

    def __init__(self) -> None:
        self.notes: dict[str, bytes] = {}
        self.dead: set[str] = set()

    def put(self, key: str, value: bytes, *, overwrite: bool) -> None:
        if overwrite or key not in self.notes:
            self.notes[key] = value

    def get(self, key: str) -> bytes | None:
        return self.notes.get(key)

    def drop(self, key: str) -> None:
        self.notes.pop(key, None)

    def keys(self, prefix: str) -> list[str]:
        return [key for key in self.notes if key.startswith(prefix)]

    def lives(self, replica: str) -> bool:
        return replica not in self.dead
