"""HAProxy finds replicas by a name: each address of it is one, and they may come and go."""

import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest

from saccade_testing.launch import free_port, wait_for
from saccade_testing.proxied import FOLDER, HAPROXY

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")

A_RECORD = struct.pack(">HHHIH", 0xC00C, 1, 1, 1, 4)
ADDRESSES = ("127.0.0.2", "127.0.0.3")


class Replica(BaseHTTPRequestHandler):
    """Says which address it is."""

    def do_GET(self) -> None:
        said = self.server.server_address[0].encode()  # type: ignore[union-attr]
        self.send_response(200)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def names(addresses: list[str]) -> Iterator[int]:
    """A name server that knows one name by these addresses, whatever it is asked; its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))

        def serve() -> None:
            while True:
                try:
                    query, client = listener.recvfrom(4096)
                except OSError:
                    return
                if not query:
                    return
                end = query.index(b"\0", 12) + 5  # of the one question
                known = addresses if query[end - 4 : end - 2] == b"\0\1" else []
                head = query[:2] + struct.pack(">HHHHH", 0x8180, 1, len(known), 0, 0)
                records = b"".join(A_RECORD + socket.inet_aton(each) for each in known)
                listener.sendto(head + query[12:end] + records, client)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", listener.getsockname())
        thread.join(5)


@contextmanager
def replicas(port: int) -> Iterator[None]:
    servers = [ThreadingHTTPServer((address, port), Replica) for address in ADDRESSES]
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield
    for server in servers:
        server.shutdown()
        server.server_close()


def test_replicas_come_and_go_with_the_addresses_of_their_name(tmp_path: Path) -> None:
    known, port, bind = [ADDRESSES[0]], free_port(), f"127.0.0.1:{free_port()}"
    with replicas(port), names(known) as name_server:
        config = tmp_path / "haproxy.cfg"
        text = (FOLDER / "haproxy.cfg").read_text()
        quick = f"nameserver test 127.0.0.1:{name_server}\n    timeout retry 100ms"
        text = text.replace("parse-resolv-conf", quick).replace("hold valid 2s", "hold valid 100ms")
        text = text.replace("hold obsolete 5s", "hold obsolete 100ms")
        config.write_text(text.replace("timeout resolve 2s", "timeout resolve 100ms"))
        told = {
            "PROXY_BIND": bind, "REPLICAS_HOST": "replica.test", "REPLICAS_PORT": str(port),
            "CHECK_INTERVAL": "50ms", "AFFINITY_LUA": f"{FOLDER}/affinity.lua",
        }  # fmt: skip
        assert HAPROXY is not None
        with (tmp_path / "log").open("w") as log:
            proxy = subprocess.Popen(
                [HAPROXY, "-db", "-f", str(config)], stdout=log, stderr=log, env=os.environ | told
            )
        try:
            with httpx2.Client(base_url=f"http://{bind}", trust_env=False) as http:

                def answering() -> set[str]:
                    try:
                        replies = [http.get("/version") for _ in range(8)]
                    except httpx2.TransportError:
                        return set()
                    return {reply.text for reply in replies if reply.status_code == 200}

                wait_for(lambda: answering() == {ADDRESSES[0]}, 20)
                known.append(ADDRESSES[1])
                wait_for(lambda: answering() == set(ADDRESSES), 20)
                known.remove(ADDRESSES[0])
                wait_for(lambda: answering() == {ADDRESSES[1]}, 20)
        finally:
            proxy.kill()
            proxy.wait()
