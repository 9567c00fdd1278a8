"""From generated token ids back to text, one token at a time.

Text is handed out when no later token can change it, so the pieces join to what the tokenizer
makes of all tokens together. Two things wait: a character whose bytes are spread over several
tokens, and, where bytes are tokens of their own (SentencePiece's byte fallback), a run of them
until it ends: one broken byte in it turns the whole run into replacement characters.

Where every token is some bytes, whatever stands beside it (byte-level BPE), the text is that of the
bytes in a row, and the tokenizer is asked once for each token of its vocabulary that ever occurs.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer

REPLACEMENT = "\ufffd"
LONGEST_CONTEXT = 16
"""Tokens of a prompt to look through for a whole character."""
LONGEST_CHARACTER = 4
"""Tokens that the bytes of one character may be spread over."""

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[str, int]:
    """Byte of each character of byte-level BPE, GPT-2's table."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    shown = {chr(byte): byte for byte in printable}
    return shown | {chr(256 + index): byte for index, byte in enumerate(others)}


ALPHABET = byte_alphabet()


class ByteDetokenizer:
    """The text of one growing sequence, where tokens are bytes; ``data`` has those of each token.

    What a prompt's last tokens leave unfinished counts as new. ``shown`` are texts for tokens that
    are written as these, whatever their own bytes are.
    """

    def __init__(
        self,
        data: Mapping[int, bytes],
        prompt_tokens: Sequence[int] = (),
        shown: Mapping[int, str] | None = None,
    ) -> None:
        self._data = data
        self._shown = shown or {}
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._decode(b"".join(data[token] for token in prompt_tokens[-LONGEST_CONTEXT:]))

    def push(self, token: int) -> str:
        """Take the next token; return the text that is now certain, possibly none."""
        if token in self._shown:
            return self.flush() + self._shown[token]
        return self._decode(self._data[token])

    def flush(self) -> str:
        """The text of bytes still waiting for the rest of a character; ends the sequence."""
        return self._decode(b"", True)


class Detokenizer:
    """The text of one growing sequence; tokens in ``special`` have no text.

    ``fallback`` are the tokens that are single bytes. With ``eager`` a run of them does not wait
    for its end, only for the ends of its characters. ``alone`` keeps the texts of single tokens,
    for all sequences of a tokenizer. ``shown`` are texts for tokens that are written as these.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        special: frozenset[int] = frozenset(),
        prompt_tokens: Sequence[int] = (),
        fallback: Mapping[int, bytes] | None = None,
        eager: bool = False,
        alone: dict[int, str] | None = None,
        shown: Mapping[int, str] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._fallback = fallback or {}
        self._eager = eager
        self._alone = {} if alone is None else alone
        self._shown = shown or {}
        self._begin(self._context(prompt_tokens))

    def _begin(self, ids: list[int]) -> None:
        """Go on behind ``ids``, of which nothing is to be handed out but what they left open."""
        self._run = _Run()
        # Decoding depends on what stands before (SentencePiece drops a leading space), so the
        # last piece handed out stays in front of the tokens that wait.
        self._ids = ids
        self._read = len(self._ids)  # tokens whose text has been handed out
        # A prompt may end inside a character; then the whole character counts as new.
        self._sent = self._decode(self._ids).rstrip(REPLACEMENT)
        for token in self._ids:
            self._run.push(self._fallback.get(token))

    def push(self, token: int) -> str:
        """Take the next token; return the text that is now certain, possibly none."""
        if token in self._shown:
            text = self.flush() + self._shown[token]
            self._begin([token])
            return text
        if token in self._special or not self._known(token):
            return ""
        was_broken = self._run.broken
        self._run.push(self._fallback.get(token))
        if was_broken and self._run.broken:
            return REPLACEMENT  # every byte of the run, whatever follows
        self._ids.append(token)
        if self._run.inside_character or (self._run.going_on and not self._eager):
            return ""
        return self._hand_out()

    def flush(self) -> str:
        """The text of tokens still waiting for the rest of a character; ends the sequence."""
        return self._new(self._decode(self._ids)) if self._read < len(self._ids) else ""

    def _hand_out(self) -> str:
        whole = self._decode(self._ids)
        # The last replacement character may be the beginning of a character.
        waits = not self._fallback and whole.endswith(REPLACEMENT)
        text = self._new(whole[:-1] if waits else whole)
        if waits:
            self._forget_broken(whole)
        else:
            del self._ids[: self._read]
            self._read = len(self._ids)
            self._sent = self._decode(self._ids)
        return text

    def _new(self, text: str) -> str:
        """The part of ``text``, the decoded tokens, behind the text that was handed out before."""
        sent, self._sent = self._sent, text
        if text.startswith(sent):
            return text[len(sent) :]
        # The prompt's own last bytes turned out differently.
        return self._decode(self._ids[self._read :])

    def _forget_broken(self, whole: str) -> None:
        """Drop tokens that a long run of broken bytes has left behind."""
        if len(self._ids) <= LONGEST_CONTEXT:
            return
        for keep in range(1, LONGEST_CHARACTER + 1):
            head, tail = self._decode(self._ids[:-keep]), self._decode(self._ids[-keep:])
            if head + tail == whole:
                self._ids, self._sent, self._read = self._ids[-keep:], tail[:-1], 0
                return

    def _context(self, prompt_tokens: Sequence[int]) -> list[int]:
        """The shortest end of the prompt that decodes without a broken character in front."""
        tokens = [t for t in prompt_tokens[-4 * LONGEST_CONTEXT :] if t not in self._special]
        for length in range(1, min(LONGEST_CONTEXT, len(tokens)) + 1):
            text = self._decode(tokens[-length:]).rstrip(REPLACEMENT)
            if text and REPLACEMENT not in text:
                return tokens[-length:]
        return []

    def _known(self, token: int) -> bool:
        return token in self._alone or self._tokenizer.id_to_token(token) is not None

    def _decode(self, ids: list[int]) -> str:
        if len(ids) != 1:
            return self._tokenizer.decode(ids, skip_special_tokens=False)
        text = self._alone.get(ids[0])
        if text is None:
            text = self._tokenizer.decode(ids, skip_special_tokens=False)
            if self._known(ids[0]):
                self._alone[ids[0]] = text
        return text


class _Run:
    """Byte tokens in a row, up to now."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.going_on = False
        self.broken = False
        self.inside_character = False

    def push(self, byte: bytes | None) -> None:
        """Take the next token's byte; None, for any other token, ends the run."""
        if byte is None:
            self._decoder.reset()
            self.going_on = self.broken = self.inside_character = False
        elif not self.broken:
            try:
                self.inside_character = not self._decoder.decode(byte)
                self.going_on = True
            except UnicodeDecodeError:
                self.broken, self.going_on, self.inside_character = True, False, False


class TokenData(dict[int, bytes]):
    """The bytes of each token of a byte-level tokenizer, found when they are first asked for.

    Tokens in ``special``, and ids without a token, have none.
    """

    def __init__(self, tokenizer: Tokenizer, special: frozenset[int] = frozenset()) -> None:
        super().__init__(dict.fromkeys(special, b""))
        self._tokenizer = tokenizer

    def __missing__(self, token: int) -> bytes:
        data = self[token] = self._of(token)
        return data

    def _of(self, token: int) -> bytes:
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        # The decoder's own rule: a token with a character that stands for no byte is plain text.
        if all(character in ALPHABET for character in piece):
            return bytes(ALPHABET[character] for character in piece)
        return piece.encode()


class TokenBytes:
    """The bytes that single tokens stand for, as the logprobs of a response list them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = {i: t.content for i, t in tokenizer.get_added_tokens_decoder().items()}
        described = json.loads(tokenizer.to_str()).get("decoder")
        decoder = json.dumps(described)
        self._byte_of = ALPHABET if '"ByteLevel"' in decoder else None
        self.byte_level = described is not None and described["type"] == "ByteLevel"
        """Tokens are bytes, whatever stands beside them."""
        self.fallback = _byte_tokens(tokenizer) if '"ByteFallback"' in decoder else {}
        """Tokens that stand for one byte each and decode together with their neighbours."""

    @property
    def longest(self) -> int | None:
        """Characters of the longest token; None if there is one for all text that is unknown."""
        known = self._tokenizer.get_vocab()
        by_level = self._byte_of is not None and all(piece in known for piece in self._byte_of)
        covers_all = by_level or len(self.fallback) == 256
        return max(map(len, known)) if covers_all else None

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


def _byte_tokens(tokenizer: Tokenizer) -> dict[int, bytes]:
    found = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}
    ids = {tokenizer.token_to_id(name): byte for name, byte in found.items()}
    return {token: byte for token, byte in ids.items() if token is not None}
