"""From generated token ids back to text, one token at a time.

Text is handed out when no later token can change it: a character whose bytes are spread over
several tokens comes out whole, with the last of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from tokenizers import Tokenizer

REPLACEMENT = "\ufffd"
LONGEST_WAIT = 16
"""Tokens to wait for the rest of a character, which needs four; behind that, bytes are broken."""

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Detokenizer:
    """The text of one growing sequence; tokens in ``special`` have no text."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        special: frozenset[int] = frozenset(),
        prompt_tokens: Sequence[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._special = special
        # Decoding depends on what stands before (SentencePiece drops a leading space), so the
        # last piece handed out stays in front of the tokens that wait.
        self._ids = self._context(prompt_tokens)
        self._read = len(self._ids)  # tokens whose text has been handed out

    def push(self, token: int) -> str:
        """Take the next token; return the text that is now certain, possibly none."""
        if token in self._special:
            return ""
        self._ids.append(token)
        text = self._new_text()
        if text.endswith(REPLACEMENT) and len(self._ids) - self._read < LONGEST_WAIT:
            return ""
        return self._hand_out(text)

    def flush(self) -> str:
        """The text of tokens still waiting for the rest of a character; ends the sequence."""
        return self._hand_out(self._new_text()) if self._read < len(self._ids) else ""

    def _new_text(self) -> str:
        """Text of the tokens not read yet, decoded behind the ones before them."""
        whole = self._decode(self._ids)
        # A prompt may end inside a character; then the whole character counts as new.
        known = self._decode(self._ids[: self._read]).rstrip(REPLACEMENT)
        if whole.startswith(known):
            return whole[len(known) :]
        return self._decode(self._ids[self._read :])

    def _hand_out(self, text: str) -> str:
        if text:
            # A piece that began with bytes of the prompt decodes only together with them.
            if not self._decode(self._ids[: self._read]).endswith(REPLACEMENT):
                del self._ids[: self._read]
            self._read = len(self._ids)
        elif len(self._ids) - self._read >= LONGEST_WAIT:
            del self._ids[self._read :]  # ids without any text
        return text

    def _context(self, prompt_tokens: Sequence[int]) -> list[int]:
        """The shortest end of the prompt that decodes without a broken character in front."""
        tokens = [t for t in prompt_tokens[-4 * LONGEST_WAIT :] if t not in self._special]
        for length in range(1, min(LONGEST_WAIT, len(tokens)) + 1):
            text = self._decode(tokens[-length:]).rstrip(REPLACEMENT)
            if text and REPLACEMENT not in text:
                return tokens[-length:]
        return []

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


class TokenBytes:
    """The bytes that single tokens stand for, as the logprobs of a response list them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = {i: t.content for i, t in tokenizer.get_added_tokens_decoder().items()}
        decoder = json.dumps(json.loads(tokenizer.to_str()).get("decoder"))
        self._byte_of = byte_alphabet() if '"ByteLevel"' in decoder else None

    def of(self, token: int) -> bytes:
        """Bytes of one token; none for an id without a token."""
        if token in self._added:
            return self._added[token].encode()
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if self._byte_of is not None:
            return bytes(self._byte_of[character] for character in piece)
        byte = BYTE_TOKEN.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace("\u2581", " ").encode()


def byte_alphabet() -> dict[str, int]:
    """Byte of each character of byte-level BPE, GPT-2's table."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    shown = {chr(byte): byte for byte in printable}
    return shown | {chr(256 + index): byte for index, byte in enumerate(others)}
