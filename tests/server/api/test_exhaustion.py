"""A server without file descriptors neither spins nor floods its log, and recovers."""

import errno
import os
import resource
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest

from saccade_server.api.layers.listener import Listener, connections_within_limits
from saccade_testing.api import exhaust
from saccade_testing.api.server import wait_for

REQUEST = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"


def cpu_seconds(process):
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def status(raw):
    raw.sendall(REQUEST)
    return int(raw.recv(4096).split()[1])


def answers(address):
    with socket.create_connection(address, timeout=20) as raw, suppress(OSError, IndexError):
        return status(raw) == 200
    return False


def closed(raw):
    """The server has closed the connection; waits a moment for it."""
    raw.settimeout(0.01)
    try:
        return raw.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True
    finally:
        raw.settimeout(20)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_out_of_file_descriptors():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    connect = partial(socket.create_connection, timeout=20)
    with ExitStack() as links:
        command = [sys.executable, exhaust.__file__]
        server = links.enter_context(subprocess.Popen(command, env=environment, text=True, **pipes))
        links.callback(server.kill)
        address = ("127.0.0.1", int(server.stdout.readline()))
        held = [links.enter_context(connect(address)) for _ in range(30)]
        kept = [raw for raw in held if not closed(raw)]
        assert 0 < len(kept) < 30, "some found a descriptor, the others were turned away"
        # clients that try again are turned away at once, and those that are in are answered
        began = cpu_seconds(server)
        for _ in range(20):
            with connect(address) as raw:
                wait_for(lambda raw=raw: closed(raw), 20)
        assert status(kept[0]) == 200
        time.sleep(0.5)
        assert cpu_seconds(server) - began < 0.4, "it must not spin"
        for raw in kept[1:]:
            raw.close()
        wait_for(lambda: answers(address), 20)
        _, log = server.communicate("end", timeout=60)
    assert server.returncode == 0, log
    assert "ulimit -n" in log
    assert len(log.splitlines()) < 5, log


def test_without_even_a_spare_it_waits(monkeypatch: pytest.MonkeyPatch):
    """One failure is shown to asyncio, which then waits a second; the rest of its burst is not."""

    def exhausted(self):
        raise OSError(errno.EMFILE, "Too many open files")

    with Listener(socket.AF_INET, socket.SOCK_STREAM) as listener:
        monkeypatch.setattr(socket.socket, "accept", exhausted)
        with pytest.raises(OSError, match="Too many"):
            listener.accept()
        for _ in range(100):
            with pytest.raises(BlockingIOError):
                listener.accept()


def test_the_limit_on_open_files_bounds_connections(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    limits = [64, 64]

    def set_limits(kind, wanted):
        limits[:] = wanted

    monkeypatch.setattr(resource, "getrlimit", lambda kind: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", set_limits)
    assert connections_within_limits(1024, 16) == 16
    assert "ulimit -n" in caplog.text
    limits[:] = 256, 4096
    assert connections_within_limits(1024, 16) == 1024
    assert limits == [1024 + 16 + 128, 4096]
    limits[:] = 256, 512
    assert connections_within_limits(1024, 16) == 512 - 128 - 16
    limits[:] = 2**20, 2**20
    assert connections_within_limits(1024, 16) == 1024
    assert limits == [2**20, 2**20]
    limits[:] = 1024, resource.RLIM_INFINITY
    assert connections_within_limits(4096, 16) == 4096
