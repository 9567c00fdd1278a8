"""The profiles that requests may name now, and the one that those get which name nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from saccade_interventions.artifacts import DIGEST_TEXT
from saccade_server.requests.profiles import Profile


class ServedProfiles(Mapping[str, Profile]):
    """By name; replaced as a whole, on the event loop, so that no request sees half of a change.

    A request takes the interventions of its profile when it selects them, and keeps these.
    """

    def __init__(self, profiles: Mapping[str, Profile], default: str | None = None) -> None:
        self._profiles = dict(profiles)
        self.default = default

    def __getitem__(self, name: str) -> Profile:
        return self._profiles[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._profiles)

    def __len__(self) -> int:
        return len(self._profiles)

    def replace(self, profiles: Mapping[str, Profile]) -> None:
        """Have other profiles from now on; they were checked."""
        self._profiles = dict(profiles)

    def naming(self, digest: str) -> str | None:
        """The first profile that names an artifact."""
        return next((name for name, one in self.items() if digest in artifacts_of(one)), None)

    def artifacts(self) -> frozenset[str]:
        """The digests of all artifacts that a profile names."""
        return frozenset().union(*map(artifacts_of, self.values()))


def artifacts_of(profile: Profile) -> frozenset[str]:
    """The digests that its entries name."""
    values = (value for entry in profile.interventions for value in entry.normalised().values())
    return frozenset(v for v in values if isinstance(v, str) and DIGEST_TEXT.fullmatch(v))
