"""Files that replicas read again: on all, or on none, and whoever was away follows."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from saccade_server.api.deployment import Deployment
from saccade_server.api.expected import DeploymentError
from saccade_server.api.reloading import Apply, Reloadable
from saccade_server.cluster import rounds
from saccade_server.cluster.agreement import Agreement, Member
from saccade_server.cluster.files import Files
from saccade_testing.notes import Kept

PATH = Path("profiles.toml")


class Replica:
    """What Ray calls, over a file that says one word."""

    def __init__(self, name: str, disk: dict[str, str], notes: Kept) -> None:
        self.name = name
        self.disk = disk
        self.word = disk["word"]
        self.member = Member(
            Agreement(notes, "app/1"), name, lambda: Deployment({"word": self.word})
        )
        last = Files.last_round(self.member)
        self.member.join()
        self.files = Files([Reloadable(PATH, self._read)], self.member, last)

    def _read(self) -> Apply:
        word = self.disk.get(self.name, self.disk["word"])
        if word == "wrong":
            raise ValueError("it is wrong")
        if word == "surprising":
            raise KeyError(word)

        def apply() -> str:
            self.word = word
            return f"the word {word}"

        return apply

    async def check_files(self, round: str) -> tuple[str, str]:
        return self.name, await self.files.check(round)

    async def apply_files(self, round: str) -> tuple[str, list[str]]:
        return self.name, await self.files.apply(round)


class Cluster:
    """Replicas as the command sees them; those that are ``away`` are not asked."""

    def __init__(self, *names: str) -> None:
        self.notes = Kept()
        self.disk = {"word": "old"}
        self.replicas = [Replica(name, self.disk, self.notes) for name in names]
        self.away: dict[str, set[str]] = {}
        self.asked: list[str] = []

    def count(self) -> int:
        return len(self.replicas)

    def ask(self, method: str, round: str) -> list[Any]:
        self.asked.append(method)
        there = [r for r in self.replicas if r.name not in self.away.get(method, set())]

        async def each() -> list[Any]:
            calls = (getattr(replica, method)(round) for replica in there)
            return await asyncio.gather(*calls, return_exceptions=True)

        return asyncio.run(each())

    @property
    def words(self) -> list[str]:
        return [replica.word for replica in self.replicas]

    def join(self, name: str) -> None:
        self.replicas.append(Replica(name, self.disk, self.notes))


@pytest.fixture
def cluster() -> Cluster:
    return Cluster("a", "b", "c")


def test_all_read_again(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "saccade.reload")
    cluster.disk["word"] = "new"
    assert rounds.reload(cluster)
    assert cluster.words == ["new"] * 3
    assert "reloaded on 3 replicas: the word new" in caplog.text
    cluster.join("d")  # and whoever comes now is like them
    assert rounds.reload(cluster)


@pytest.mark.parametrize("word", ["wrong", "surprising"])
def test_what_one_cannot_use_counts_on_none(
    cluster: Cluster, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.disk |= {"word": "new", "b": word}
    assert not rounds.reload(cluster)
    assert cluster.words == ["old"] * 3
    assert cluster.asked == ["check_files"]
    assert "nothing was reloaded" in caplog.text
    assert "replica b: profiles.toml" in caplog.text


def test_nothing_counts_while_one_cannot_be_asked(cluster: Cluster) -> None:
    cluster.disk["word"] = "new"
    cluster.away["check_files"] = {"c"}
    assert not rounds.reload(cluster)
    assert cluster.words == ["old"] * 3


def test_nor_if_asking_fails(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(method: str, round: str) -> list[Any]:
        raise TimeoutError("Timed out waiting for broadcast results.")

    monkeypatch.setattr(cluster, "ask", late)
    assert not rounds.reload(cluster)


def test_what_was_checked_counts_and_not_what_was_written_since(cluster: Cluster) -> None:
    cluster.disk["word"] = "new"
    cluster.ask("check_files", "1")
    cluster.disk["word"] = "wrong"
    cluster.ask("apply_files", "1")
    assert cluster.words == ["new"] * 3


def test_one_that_missed_the_second_round_follows(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.disk["word"] = "new"
    cluster.away["apply_files"] = {"c"}
    assert not rounds.reload(cluster)
    assert "nothing was heard of c" in caplog.text
    assert cluster.words == ["new", "new", "old"]
    asyncio.run(cluster.replicas[2].files.look())
    assert cluster.words == ["new"] * 3
    assert not cluster.replicas[2].files.behind


def test_one_that_came_between_the_rounds_reads_by_itself(cluster: Cluster) -> None:
    cluster.join("d")
    cluster.disk["word"] = "new"
    cluster.away["check_files"] = {"d"}
    cluster.ask("check_files", "2")
    answers = cluster.ask("apply_files", "2")
    # It may have been quicker than the others; then it looks again.
    assert all(not isinstance(a, Exception) for a in answers) or isinstance(
        answers[3], DeploymentError
    )
    asyncio.run(cluster.replicas[3].files.look())
    assert cluster.words == ["new"] * 4


def test_one_that_started_with_old_files_and_was_asked_for_nothing_follows(
    cluster: Cluster,
) -> None:
    """It joined before the others had changed, and Ray knew of it only afterwards."""
    late = Replica("late", cluster.disk, cluster.notes)
    cluster.disk["word"] = "new"
    assert rounds.reload(cluster)
    asyncio.run(late.files.look())
    assert late.word == "new"


def test_one_that_cannot_follow_says_so(cluster: Cluster) -> None:
    late = Replica("late", cluster.disk, cluster.notes)
    cluster.disk["word"] = "new"
    assert rounds.reload(cluster)
    for word, reason in (("wrong", "it is wrong"), ("other", "unlike replica")):
        cluster.disk["late"] = word
        asyncio.run(late.files.look())
        assert reason in late.files.behind
    cluster.disk["late"] = "new"
    asyncio.run(late.files.look())
    assert late.files.behind == ""


def test_a_replica_that_starts_with_old_files_does_not_start(cluster: Cluster) -> None:
    old = cluster.disk["word"]
    cluster.disk["word"] = "new"
    assert rounds.reload(cluster)
    cluster.notes.dead.update({"b", "c"})  # the first is left, which was written down as old
    cluster.disk["word"] = old
    with pytest.raises(DeploymentError, match='word is "old", not "new"'):
        cluster.join("d")


def test_notes_out_of_reach_change_nothing(cluster: Cluster) -> None:
    replica = cluster.replicas[0]

    class Gone(Kept):
        def get(self, key: str) -> bytes | None:
            raise RuntimeError("no connection")

    object.__setattr__(replica.member, "agreement", Agreement(Gone(), "app/1"))
    asyncio.run(replica.files.look())
    assert (replica.files.behind, replica.word) == ("", "old")
