"""Asking once, over any number of runs; and what a server may say instead of answering."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from saccade_server.demo.splits import Split
from saccade_server.evaluation.answers import SEED_STRIDE, Answers
from saccade_server.evaluation.asking import Asker, Reply, user_message
from saccade_server.evaluation.errors import EvaluationError, SettingRefused
from saccade_server.evaluation.items import caption_items
from saccade_server.evaluation.log import WorkLog
from saccade_server.evaluation.settings import Setting

ITEMS = caption_items(Split.CLEAR, 4)
PLAIN, PAI = Setting("none"), Setting("pai", ({"method": "pai"},))


class Server:
    """Answers with the seed; refuses or fails when told to."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.busy = 0
        self.busy_status = 503
        self.status = 200

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v1/models":
            return httpx2.Response(200, json={"data": [{"id": "m"}]})
        body = json.loads(request.content)
        if self.busy:
            self.busy -= 1
            return httpx2.Response(self.busy_status, json={}, headers={"retry-after": "0"})
        if self.status != 200:
            error = {"message": "no such thing", "param": "interventions[0].method"}
            return httpx2.Response(self.status, json={"error": error})
        self.asked.append(body)
        return httpx2.Response(
            200,
            json={
                "choices": [{"message": {"content": f"seed {body['seed']}"}}],
                "usage": {"completion_tokens": 3},
                "interventions_applied": [{"status": "applied"}] * len(body["interventions"]),
            },
        )


def ask(server: Server, log: Path, *settings: Setting, identity: str = "m") -> list[list[Reply]]:
    async def main() -> list[list[Reply]]:
        transport = httpx2.MockTransport(server)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            with WorkLog(log) as opened:
                asker = await Asker.connect(client, 2)
                answers = Answers(asker, opened, identity, {"temperature": 0.5})
                return [await answers.of(setting, ITEMS) for setting in settings]

    return asyncio.run(main())


def test_answers_come_in_order_each_with_its_own_seed(tmp_path: Path) -> None:
    server = Server()
    (replies,) = ask(server, tmp_path / "log", PAI)
    assert [reply.text for reply in replies] == [f"seed {index}" for index in range(4)]
    assert {reply.status for reply in replies} == {("applied",)}
    assert {body["temperature"] for body in server.asked} == {0.5}
    later = caption_items(Split.CLEAR, 1, seed=7)[0]
    assert later.seed * SEED_STRIDE > 4


def test_a_rerun_asks_only_what_is_missing(tmp_path: Path) -> None:
    log, first, second = tmp_path / "log", Server(), Server()
    before = ask(first, log, PLAIN)
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:2]) + lines[2][:20])  # stopped in the middle of a line
    after = ask(second, log, PLAIN, PAI)
    assert after[0] == before[0]
    assert len(second.asked) == 2 + 4
    assert len(log.read_text().splitlines()) == 8
    third = Server()
    ask(third, log, PLAIN, PAI)
    assert not third.asked


def test_another_model_is_another_run(tmp_path: Path) -> None:
    ask(Server(), tmp_path / "log", PLAIN)
    server = Server()
    ask(server, tmp_path / "log", PLAIN, identity="other")
    assert len(server.asked) == 4


def test_a_file_that_is_no_log_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("hello\nworld\n")
    with pytest.raises(EvaluationError, match=r"log:1: not a log"):
        WorkLog(log)
    assert log.read_text() == "hello\nworld\n"


@pytest.mark.parametrize("status", [503, 500])
def test_a_busy_server_is_asked_again(tmp_path: Path, status: int) -> None:
    server = Server()
    server.busy, server.busy_status = 5, status
    (replies,) = ask(server, tmp_path / "log", PLAIN)
    assert len(replies) == 4


def test_a_refusal_is_told_from_a_failure(tmp_path: Path) -> None:
    server = Server()
    server.status = 400
    with pytest.raises(SettingRefused, match=r"no such thing \(interventions\[0\]\.method\)"):
        ask(server, tmp_path / "a", PAI)
    for status in (500, 401):
        server.status = status
        with pytest.raises(EvaluationError, match=f"HTTP {status}") as caught:
            ask(server, tmp_path / "b", PAI)
        assert not isinstance(caught.value, SettingRefused)


def test_nobody_there() -> None:
    async def main() -> None:
        async with httpx2.AsyncClient(base_url="http://127.0.0.1:9", timeout=2) as client:
            await Asker.connect(client, 1)

    with pytest.raises(EvaluationError, match=r"127\.0\.0\.1"):
        asyncio.run(main())


def test_something_else_there() -> None:
    async def main() -> None:
        transport = httpx2.MockTransport(lambda request: httpx2.Response(200, text="<html>"))
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            await Asker.connect(client, 1)

    with pytest.raises(EvaluationError, match="no list of models"):
        asyncio.run(main())


def test_images_come_before_the_text() -> None:
    (message,) = user_message("What?", ["data:a", "data:b"])
    assert [part["type"] for part in message["content"]] == ["image_url", "image_url", "text"]
