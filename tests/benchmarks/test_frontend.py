"""The front end's benchmark: what it makes of seconds and of bytes."""

import pytest
from front import clients


def test_answers_are_compared_without_their_framing_and_what_is_their_own() -> None:
    event = b'data: {"id":"chatcmpl-%b","created":%b,"text":"a"}\n\n'
    one, other = event % (b"1" * 8, b"17"), event % (b"2" * 8, b"18")
    head = b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n"
    apart = head + chunks % (5, one[:5], len(one) - 5, one[5:])
    whole = b"HTTP/1.1 200 \r\ncontent-length: %d\r\n\r\n%b" % (len(other), other)
    assert clients.content(apart) == clients.content(whole)
    assert clients.content(apart) != clients.content(whole.replace(b'"a"', b'"b"'))
    with pytest.raises(ValueError, match="503"):
        clients.content(b"HTTP/1.1 503 \r\ncontent-length: 0\r\n\r\n")


def test_an_answer_is_whole_at_its_last_byte() -> None:
    head = b"HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\n"
    for data, is_whole in ((head[:-2], False), (head + b"ab", False), (head + b"abc", True)):
        connection = clients.Connection()
        connection._data += data
        assert connection._is_whole() is is_whole
