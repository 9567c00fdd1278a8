"""A bare application behind our connections, in a process that may open twenty more files.

Prints its port, and serves until something comes through its standard input.
"""

import asyncio
import logging
import os
import resource
import socket
import sys

import uvicorn
from starlette.types import Receive, Scope, Send

from saccade_server.api.layers.connections import HttpConfig
from saccade_server.api.layers.listener import Listener
from saccade_server.api.settings import ApiSettings

FILES = 20


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    headers = [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def use_up_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    held = []
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        for handle in held[:FILES]:
            os.close(handle)


async def main() -> None:
    listener = Listener(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    settings = ApiSettings("x", max_connections=40, header_timeout=60, keep_alive_timeout=60)
    server = uvicorn.Server(HttpConfig(application, settings))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    loop = asyncio.get_running_loop()
    ending = loop.run_in_executor(None, sys.stdin.read)
    use_up_files()
    print(listener.getsockname()[1], flush=True)
    await ending
    server.should_exit = True
    await serving


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(main())
