"""Files that all replicas read again when the command is told to: on all of them, or on none.

The command goes round twice. First every replica reads and checks the files, and keeps what it
read. If all can, the second round puts it into force, each in one turn of its loop; else nothing
has changed. Requests that are in flight keep what they selected, and for a moment new ones may find
the old files on one replica and the new ones on another.

The number of the last round is kept where Ray keeps notes for the whole cluster. A replica that was
not there when the others were asked sees that it has missed one, and reads the files by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from saccade_server.api.expected import DeploymentError
from saccade_server.api.reloading import Apply, Reloadable, ReloadError, read_all
from saccade_server.cluster.agreement import Member

logger = logging.getLogger("saccade.reload")

LOOK_SECONDS = 5.0


class Files:
    """Those of one replica.

    Args:
        files: what it read when it started.
        member: the replica among the others.
        round: the last round before it did, see :meth:`last_round`.
    """

    def __init__(self, files: Sequence[Reloadable], member: Member, round: str) -> None:
        self.behind = ""
        """Why this replica is not what the others are; empty if it is."""
        self._files = files
        self._member = member
        self._round = round
        self._checked: tuple[str, list[Apply]] | None = None
        self._lock = asyncio.Lock()

    async def check(self, round: str) -> str:
        """Read the files for ``round``, which may put them into force. Returns what is wrong."""
        self._checked = None
        try:
            self._checked = round, await read_all(self._files)
        except ReloadError as error:
            if error.__cause__ is not None:
                logger.error("files could not be checked", exc_info=error.__cause__)
            return str(error)
        return ""

    async def apply(self, round: str) -> list[str]:
        """Put into force what was read for ``round``. Returns what the log says.

        Raises:
            ReloadError, DeploymentError: this replica did not check them, and now cannot count.
        """
        async with self._lock:
            await asyncio.to_thread(self._write, round)
            checked, self._checked = self._checked, None
            if checked is None or checked[0] != round:  # it was not there to be asked
                return await self._catch_up(round)
            words = [apply() for apply in checked[1]]
            await asyncio.to_thread(self._member.move)
            self._round = round
            return words

    async def keep_up(self) -> None:
        """Look for rounds that this replica has missed, as long as it lives."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Make up for a round that was missed; says in :attr:`behind` if that cannot be."""
        try:
            async with self._lock:
                round = await asyncio.to_thread(self.last_round, self._member)
                if round != self._round:
                    logger.warning("files were read again while this replica was not asked")
                    await self._catch_up(round)
                self.behind = ""
        except (ReloadError, DeploymentError) as error:
            self.behind = str(error)
            logger.error("this replica is not what the others are: %s", error)
        except Exception:  # Ray's notes are out of reach: what is in force stays
            logger.warning("whether files were read again is not known", exc_info=True)

    async def _catch_up(self, round: str) -> list[str]:
        words = [apply() for apply in await read_all(self._files)]
        await asyncio.to_thread(self._member.join)
        self._round = round
        return words

    def _write(self, round: str) -> None:
        agreement = self._member.agreement
        agreement.notes.put(_key(agreement.about), round.encode(), overwrite=True)

    @staticmethod
    def last_round(member: Member) -> str:
        """The number of the last round that was put into force; waits for the network."""
        return (member.agreement.notes.get(_key(member.agreement.about)) or b"").decode()


def _key(about: str) -> str:
    return f"rounds/{about}"
