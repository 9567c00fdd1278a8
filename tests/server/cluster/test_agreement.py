"""Replicas that differ do not start; what dead ones were is forgotten."""

import pytest

from saccade_server.api.deployment import Deployment
from saccade_server.api.expected import DeploymentError
from saccade_server.cluster.agreement import Agreement, about
from saccade_server.serve_options.server import ServerOptions
from saccade_testing.notes import Kept

RIGHT = Deployment({"model": "m", "fingerprint": "sha256:1"})
OTHER = Deployment({"model": "m", "fingerprint": "sha256:2"})


def test_equal_replicas_join_and_join_again() -> None:
    agreement = Agreement(Kept(), "app/1")
    for replica in ("a", "b", "c", "a"):
        agreement.join(replica, RIGHT)


def test_one_that_differs_does_not_with_what_differs() -> None:
    kept = Kept()
    agreement = Agreement(kept, "app/1")
    agreement.join("a", RIGHT)
    with pytest.raises(DeploymentError, match=r"unlike replica a, .*fingerprint is .*2.*not .*1"):
        agreement.join("b", OTHER)
    agreement.join("c", RIGHT)  # what was refused left nothing behind


def test_the_first_may_have_ended_and_the_others_still_count() -> None:
    kept = Kept()
    agreement = Agreement(kept, "app/1")
    agreement.join("a", RIGHT)
    agreement.join("b", RIGHT)
    kept.dead.add("a")
    with pytest.raises(DeploymentError, match="unlike replica b"):
        agreement.join("c", OTHER)


def test_once_all_have_ended_others_may_come() -> None:
    kept = Kept()
    agreement = Agreement(kept, "app/1")
    agreement.join("a", RIGHT)
    kept.dead.add("a")
    agreement.join("b", OTHER)
    with pytest.raises(DeploymentError):
        agreement.join("c", RIGHT)


def test_of_two_that_come_at_once_the_second_reads_the_first() -> None:
    """Both have looked for others and found none; only the first is written then."""
    kept = Kept()

    class Hurried(Kept):
        def keys(self, prefix: str) -> list[str]:
            found = kept.keys(prefix)
            Agreement(kept, "app/1").join("quicker", RIGHT)
            return found

    hurried = Hurried()
    hurried.notes = kept.notes
    with pytest.raises(DeploymentError, match="unlike replica quicker"):
        Agreement(hurried, "app/1").join("slower", OTHER)


def test_other_options_and_applications_are_not_compared() -> None:
    one = ServerOptions().choices(None, None)
    other = ServerOptions().choices(None, "renamed")
    assert about("app", one) == about("app", ServerOptions().choices(None, None))
    assert len({about("app", one), about("app", other), about("application", one)}) == 3
    kept = Kept()
    Agreement(kept, "app/1").join("a", RIGHT)
    Agreement(kept, "app/2").join("b", OTHER)
    Agreement(kept, "application/1").join("c", OTHER)


def test_keys_are_not_to_be_read_in_what_is_kept() -> None:
    from saccade_server.serve_options.access import AccessOptions

    choices = ServerOptions(access=AccessOptions(api_key=["secret-key"])).choices(None, None)
    assert "secret-key" not in about("app", choices)
    assert "secret-key" not in repr(choices)
