"""One side of the comparison: a server of the code in PYTHONPATH, before the stub of an engine.

Prints one line of JSON when it listens: its port, and the processes whose time is to be measured.
For every line that it reads, a JSON object with ``streams``, ``requests``, ``tokens`` and ``pace``,
it takes as many answers from the engine without any HTTP, and prints an empty line. It ends when
its standard input does. With the variable FRONTEND_UNSEEN nobody observes its requests.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from saccade_interventions.registry import Registry
from saccade_server.api.app import create_app
from saccade_server.api.layers.observe import Observe
from saccade_server.api.settings import ApiSettings
from saccade_server.demo import model_path
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.remote import RemoteEngine
from saccade_server.engine.request import GenerateRequest, SamplingParams
from saccade_server.listening import make_server, open_up, take
from saccade_server.models.prompt import PromptProcessor

ANSWER = "The picture shows a small red cube to the left of two large green balls, and no cat. "


async def start_engine(prompts: PromptProcessor) -> RemoteEngine:
    """The client's half as it is, the other process with the stub in it."""
    os.environ["FRONTEND_SAYS"] = json.dumps(prompts.tokens(ANSWER, add_special_tokens=False))
    start = asyncio.create_subprocess_exec

    async def with_stub(*command: Any, **options: Any) -> Any:
        named = ("front.stub" if c == "saccade_server.engine.process" else c for c in command)
        return await start(*named, **options)

    asyncio.create_subprocess_exec = with_stub  # type: ignore[assignment]
    try:
        return await RemoteEngine.start(EngineConfig(model=str(model_path())))
    finally:
        asyncio.create_subprocess_exec = start


class Taker:
    """Takes answers from the engine as the API does, and throws them away."""

    def __init__(self, engine: RemoteEngine) -> None:
        self._engine = engine
        self._count = 0

    async def take(self, streams: int, requests: int, tokens: int, pace: int) -> None:
        gate = asyncio.Semaphore(streams)

        async def one() -> None:
            async with gate:
                self._count += 1
                sampling = SamplingParams(max_tokens=tokens, seed=pace)
                request = GenerateRequest(
                    request_id=f"taken-{self._count}", tokens=(1, 5, 6), sampling=sampling
                )
                found = 0
                async for output in self._engine.submit(request):
                    found += len(output.tokens)
                assert found == tokens

        await asyncio.gather(*(one() for _ in range(requests)))


def blind(app: FastAPI) -> None:
    """Have nobody look at requests: nothing is counted of them."""
    (observe,) = [each for each in app.user_middleware if each.cls is Observe]
    observe.kwargs["observers"] = ()


async def serve() -> None:
    prompts = PromptProcessor.load(str(model_path()))
    engine = await start_engine(prompts)
    with tempfile.TemporaryDirectory() as folder:
        settings = ApiSettings(
            served_model_name="stub", max_requests=4096, access_log=False, artifacts=Path(folder)
        )
        app = create_app(engine, prompts, Registry.discover(), settings)
        if "FRONTEND_UNSEEN" in os.environ:
            blind(app)
        server = make_server(app, settings)
        sockets = take("127.0.0.1", 0)
        open_up(sockets)
        serving = asyncio.create_task(server.serve(sockets))
        while not server.started:
            await asyncio.sleep(0.01)
        assert engine._process is not None
        about = {
            "port": sockets[0].getsockname()[1],
            "api": os.getpid(),
            "engine": engine._process.pid,
        }
        print(json.dumps(about), flush=True)
        taker = Taker(engine)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            await taker.take(**json.loads(line))
            print(flush=True)
        server.should_exit = True
        await serving
        await engine.close()


if __name__ == "__main__":
    asyncio.run(serve())
