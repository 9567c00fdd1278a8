"""As many replicas as requests in flight ask for, on a real Ray: one more, and back."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from saccade_server.cluster.names import REPLICA
from saccade_testing.api.bodies import parse_events
from saccade_testing.launch import Clustered, gone, wait_for

pytest.importorskip("ray.serve", reason="needs the extra ray")

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

CLIENTS = 8
CHAT = "/v1/chat/completions"
SCALING = [
    *("--replicas", "1", "--max-replicas", "2", "--replica-cpus", "0.5"),
    *("--target-requests", "2", "--upscale-delay", "5", "--downscale-delay", "5"),
]


class Load:
    """Clients that ask one answer after another until they are told to end."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.wrong: list[str] = []
        self.answers: Counter[str] = Counter()
        """By replica."""
        self.end = threading.Event()

    def ask_on(self, number: int, tokens: int, pause: float) -> None:
        with httpx2.Client(base_url=self.url, timeout=120, trust_env=False) as http:
            turn = 0
            while not self.end.wait(pause):
                turn += 1
                self._ask(http, f"Client {number}, question {turn}", tokens)

    def _ask(self, http: httpx2.Client, text: str, tokens: int) -> None:
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": text}],
            **{"max_tokens": tokens, "ignore_eos": True, "stream": True},
            "stream_options": {"include_usage": True},
        }
        answer = http.post(CHAT, json=body)
        if answer.status_code != 200:
            self.wrong.append(f"{answer.status_code}: {answer.text[:500]}")
            return
        *_, usage, done = parse_events(answer.text)
        if done != "[DONE]" or usage.get("usage", {}).get("completion_tokens") != tokens:
            self.wrong.append(answer.text[-500:])
        self.answers[answer.headers[REPLICA]] += 1


def test_one_replica_becomes_two_and_goes_back(tmp_path: Path) -> None:
    served = Clustered(tmp_path / "log", "--no-self-test", *SCALING)
    try:
        wait_for(lambda: "Serving" in served.output.read_text(), 250)
        few, many = Load(served.url), Load(served.url)
        with ThreadPoolExecutor(CLIENTS + 1) as pool:
            try:
                # Somebody who asks all the time, before, while and after there are two.
                pool.submit(few.ask_on, 0, 4, 0.2)
                wait_for(lambda: sum(few.answers.values()) > 3, 60)
                assert len(served.replicas()) == 1
                began = time.monotonic()
                for number in range(CLIENTS):
                    pool.submit(many.ask_on, number, 200, 0.0)
                wait_for(lambda: len(many.answers) == 2, 240)
                grown = time.monotonic() - began
                both = served.replicas()
                wait_for(lambda: min(many.answers.values()) > 3 * CLIENTS, 120)
                ended = time.monotonic()
                many.end.set()
                wait_for(lambda: sum(map(gone, both)) == 1, 240)
                shrunk = time.monotonic() - ended
                answered = sum(few.answers.values())
                wait_for(lambda: sum(few.answers.values()) > answered + 10, 60)
            finally:
                few.end.set()
                many.end.set()
        assert not few.wrong + many.wrong
        print(  # what docs/ray.md says of it
            f"two after {grown:.0f} s, one again after {shrunk:.0f} s; "
            f"{dict(many.answers)} and {dict(few.answers)} answers"
        )
    finally:
        served.end()
