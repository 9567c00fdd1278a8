"""Questions to the server in this process; what was asked is not asked again."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from saccade_server.evaluation.log import WorkLog

CONCURRENCY = 32
FORCE = 100.0
"""A bias that makes a token the greedy one; logprobs are those of before the bias."""

Entries = Sequence[dict[str, Any]]
"""The ``interventions`` of a request."""


class Refused(Exception):
    """The server's answer was no answer; the message is its error."""


class Asked:
    """Greedy answers, and log-probabilities of given ones.

    ``facts`` decide the numbers besides the requests, plain JSON: the log may hold what other
    models or versions answered.
    """

    def __init__(self, client: Any, model: str, log: WorkLog, facts: Sequence[Any]) -> None:
        self._client, self._model, self._log, self._facts = client, model, log, list(facts)
        self._gate = asyncio.Semaphore(CONCURRENCY)
        self._known = {entry["request"]: entry["answer"] for entry in log.entries}

    async def answer(self, question: str, entries: Entries, tokens: int) -> str:
        """The greedy answer to one question, of at most ``tokens`` tokens."""
        reply = await self._post(
            "/v1/chat/completions",
            messages=[{"role": "user", "content": question}],
            interventions=list(entries),
            temperature=0,
            max_tokens=tokens,
        )
        return str(reply["choices"][0]["message"]["content"])

    async def next_token(
        self, prompt: Sequence[int], token: int, entries: Entries
    ) -> tuple[float, bool]:
        """log p of ``token`` behind ``prompt``, in nats, and whether it is the likeliest one."""
        reply = await self._post(
            "/v1/completions",
            prompt=list(prompt),
            interventions=list(entries),
            temperature=0,
            max_tokens=1,
            logit_bias={str(token): FORCE},
            logprobs=1,
        )
        found = reply["choices"][0]["logprobs"]
        own = float(found["token_logprobs"][0])
        return own, own >= max(found["top_logprobs"][0].values())

    async def logprob(
        self, prompt: Sequence[int], answer: Sequence[int], entries: Entries
    ) -> float:
        """log p of all tokens of ``answer`` behind ``prompt``, in nats."""
        asked = (
            self.next_token([*prompt, *answer[:at]], token, entries)
            for at, token in enumerate(answer)
        )
        return sum(value for value, _ in await asyncio.gather(*asked))

    async def tokens(self, **prompt: Any) -> list[int]:
        """The tokens of a ``prompt`` or of ``messages``, as POST /tokenize takes them."""
        return list((await self._post("/tokenize", **prompt))["tokens"])

    async def _post(self, path: str, **body: Any) -> dict[str, Any]:
        content = json.dumps([self._facts, path, body], sort_keys=True)
        request = hashlib.sha256(content.encode()).hexdigest()
        if request not in self._known:
            async with self._gate:
                reply = await self._client.post(path, json={"model": self._model, **body})
            answer = reply.json()
            if reply.status_code != 200:
                raise Refused(f"{path}: {answer['error']['message']}")
            self._log.append({"request": request, "answer": answer})
            self._known[request] = answer
        return dict(self._known[request])
