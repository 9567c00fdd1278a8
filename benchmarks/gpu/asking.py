"""Requests to a server over HTTP, several at once, with nothing but Python's own library."""

from __future__ import annotations

import base64
import json
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from struct import pack
from typing import Any

QUESTION = "Describe the image. " * 12


def tokens_per_second(port: int, requests: int, count: int, method: str | None) -> dict[str, Any]:
    """Streams with an image each, from the first request to the last token.

    Raises:
        RuntimeError: a request was refused, or got another number of tokens.
    """
    began = time.perf_counter()
    with ThreadPoolExecutor(requests) as pool:
        asked = [pool.submit(ask, port, index, count, method) for index in range(requests)]
        found = [one.result() for one in asked]
    passed = time.perf_counter() - began
    firsts = sorted(first - began for first, _ in found)
    return {
        "tokens_per_second": requests * count / passed,
        "first_token_ms": firsts[len(firsts) // 2] * 1e3,
        "prompt_tokens": found[0][1],
    }


def ask(port: int, seed: int, count: int, method: str | None) -> tuple[float, int]:
    """When the first token came, in seconds of time.perf_counter(), and the prompt's tokens."""
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    body = json.dumps(request(seed, count, method))
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {answer.read()[:400]!r}")
    first, usage = 0.0, {}
    for line in answer:
        if not line.startswith(b"data: {"):
            continue
        first = first or time.perf_counter()
        chunk = json.loads(line[6:])
        usage = chunk.get("usage") or usage
        if "error" in chunk:
            raise RuntimeError(str(chunk["error"])[:400])
    connection.close()
    if usage.get("completion_tokens") != count:
        raise RuntimeError(f"{count} tokens were asked for: {usage}")
    return first, int(usage["prompt_tokens"])


def request(seed: int, count: int, method: str | None) -> dict[str, Any]:
    """Exactly ``count`` tokens, greedy, about an image of its own."""
    data = base64.b64encode(png(seed)).decode()
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    text = {"type": "text", "text": QUESTION}
    entries = {"interventions": [{"method": method}]} if method else {}
    return {
        "messages": [{"role": "user", "content": [image, text]}],
        "max_tokens": count,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **entries,
    }


def png(seed: int, side: int = 64) -> bytes:
    """A small picture in one colour with a stripe."""
    colour = bytes((seed * 37 % 256, seed * 91 % 256, 128))
    lines = [b"\0" + (b"\xff\0\0" if row == seed % side else colour) * side for row in range(side)]
    rows = zlib.compress(b"".join(lines))
    parts = [(b"IHDR", pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", rows)]
    chunks = [
        pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))
        for kind, data in [*parts, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
