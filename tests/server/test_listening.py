"""Ports: taken before a model loads, and by one server only."""

import socket

import pytest

from saccade_server.listening import ListenError, open_up, release, take


def port_of(sockets: list[socket.socket]) -> int:
    return int(sockets[0].getsockname()[1])


def test_a_port_that_is_taken_is_refused_to_the_next_although_nobody_listens() -> None:
    first = take("127.0.0.1", 0)
    try:
        with pytest.raises(ListenError, match=r"port \d+ of 127.0.0.1 is in use"):
            take("127.0.0.1", port_of(first))
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port_of(first)), 5)
    finally:
        release(first)


def test_a_port_with_closing_connections_is_free_for_the_next_server() -> None:
    first = take("127.0.0.1", 0)
    port = port_of(first)
    open_up(first)
    with socket.create_connection(("127.0.0.1", port)) as client:
        accepted, _ = first[0].accept()
        accepted.close()  # who closes first keeps the port for a minute
        assert client.recv(1) == b""
    release(first)
    second = take("127.0.0.1", port)
    try:  # it has the port alone too, before it listens
        with pytest.raises(ListenError, match=r"port \d+ of 127.0.0.1 is in use"):
            take("127.0.0.1", port)
    finally:
        release(second)


def test_who_listens_all_the_same_is_named() -> None:
    """Such as a program that shares ports, and bound this one before."""
    ours = take("127.0.0.1", 0)
    port = port_of(ours)
    theirs = socket.socket()
    for each in (*ours, theirs):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        theirs.bind(("127.0.0.1", port))
        theirs.listen()
        with pytest.raises(ListenError, match=f"port {port} of 127.0.0.1 is in use"):
            open_up(ours)
    finally:
        theirs.close()
        release(ours)


def test_a_name_stands_for_all_its_addresses() -> None:
    taken = take("localhost", 0)
    try:
        assert {each.getsockname()[0] for each in taken} <= {"127.0.0.1", "::1"}
        assert all(each.proto == socket.IPPROTO_TCP for each in taken)
    finally:
        release(taken)


def test_ipv6() -> None:
    try:
        taken = take("::1", 0)
    except ListenError as error:
        pytest.skip(str(error))
    assert taken[0].family == socket.AF_INET6
    release(taken)


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("", "--host is empty"),
        ("no-such-host.invalid", "there is no address of this name"),
        ("a..b", "there is no address of this name"),
        ("x" * 300, "there is no address of this name"),
        ("192.0.2.1", "--host 192.0.2.1 is not an address of this machine"),
    ],
)
def test_what_cannot_be_listened_on_is_refused_in_a_sentence(host: str, words: str) -> None:
    with pytest.raises(ListenError, match=words):
        take(host, 8000)
