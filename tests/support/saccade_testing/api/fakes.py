"""A scripted engine and a byte-level prompt processor, for the API's tests."""

import asyncio
import codecs
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from saccade_interventions.edits import MassEdit
from saccade_interventions.phases import Phase
from saccade_server.engine.client import CapacityError, EngineDeadError, News
from saccade_server.engine.request import (
    Counter,
    EngineInfo,
    EngineOutput,
    EngineStats,
    Failure,
    FinishReason,
    GenerateRequest,
    Receipt,
    SiteCount,
    TokenLogprobs,
)
from saccade_server.engine.timing import Timing
from saccade_server.engine.traces.data import TracePiece
from saccade_server.engine.watchdog import Lag
from saccade_server.grammars.grammar import GrammarCount
from saccade_server.models.conversation import Message, as_text_turns
from saccade_server.models.prompt import PreparedImage, RenderedPrompt
from saccade_server.models.reasoning import Markers, Thought
from saccade_server.models.tool_format import ToolFormat
from saccade_server.models.views import Cells, Pixels, View
from saccade_testing.api.scored import read_scores, with_scores
from saccade_testing.api.traced import pieces

EOS = 256
IMAGE = 257
IMAGE_LENGTH = 4
HOLDS = bytes([0, *(1, 2, 1) * 400])
INFO = EngineInfo(
    model="test/model",
    family="test",
    device="cpu",
    dtype="float32",
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=8,
    hidden_size=32,
    vocab_size=258,
    eos_token_ids=(EOS,),
    max_model_len=512,
    max_num_seqs=8,
    cache_tokens=4096,
    max_waiting=64,
    max_programs=8,
    sink_dims=(3,),
    accepts_images=True,
    follows_grammars=True,
    fingerprint="sha256:" + "ab" * 32,
)


TIMING = Timing(queued=0.5, prompt=0.25, decode=2.0)


HERMES = ToolFormat(
    lead="<tool_call>\n",
    trail="\n</tool_call>",
    between="\n</tool_call>\n<tool_call>\n",
    parts=('{"name": "', '", "arguments": ', "}"),
    name_first=True,
    name_key="name",
    arguments_key="arguments",
)


class ByteDecoder:
    """A detokenizer of bytes, which are tokens."""

    def __init__(self, shown: Mapping[int, str]) -> None:
        self.shown = shown
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        if token in self.shown:
            return self.flush() + self.shown[token]
        return self.decoder.decode(bytes([token])) if token < 256 else ""

    def flush(self) -> str:
        return self.decoder.decode(b"", True)


class BytePrompts:
    """One token a byte; an image is four tokens."""

    accepts_images = True
    special_token_ids = frozenset({EOS, IMAGE})
    vocab_size = INFO.vocab_size
    max_token_chars = 1
    template_variables = ("mood",)
    template_reads = frozenset[str]()
    knows_thinking = False
    markers: Markers | None = None
    thought: Thought | None = None
    tool_format: ToolFormat | None = HERMES
    tools_refused: str | None = None
    tool_tokens: Mapping[int, str] = MappingProxyType({})
    quick = False
    fingerprint = "sha256:bytes"

    def chat(
        self,
        messages: list[Message],
        add_generation_prompt: bool = True,
        *,
        continue_final_message: bool = False,
        variables: Mapping[str, object] | None = None,
        tools: list[dict[str, Any]] | None = None,
    ) -> RenderedPrompt:
        text = ""
        tokens: list[int] = []
        offsets: list[tuple[int, int]] = []
        images: list[PreparedImage] = []

        def add(piece: str) -> None:
            nonlocal text
            for char in piece:
                data = char.encode()
                tokens.extend(data)
                offsets.extend([(len(text), len(text) + 1)] * len(data))
                text += char

        for name, value in (variables or {}).items():
            add(f"({name}: {value})")
        if tools:
            add(f"(tools: {json.dumps(tools)})")
        for message in as_text_turns(messages):
            add(f"<{message.role.replace('developer', 'system')}>")
            if message.name and "name" in self.template_reads:
                add(f"({message.name})")
            if message.reasoning and "reasoning_content" in self.template_reads:
                add(f"({message.reasoning})")
            for part in message.parts:
                if isinstance(part, str):
                    add(part)
                else:
                    assert isinstance(part, Pixels)
                    (view,) = part.views
                    place = (view.digest(), len(tokens), view.features)
                    shown = PreparedImage(*place, view.pixels, view.grid, cells=view.cells)
                    images.append(replace(shown, size=part.size))
                    tokens.extend([IMAGE] * IMAGE_LENGTH)
                    offsets.extend([(len(text), len(text))] * IMAGE_LENGTH)
        if continue_final_message:
            add("|")
        elif add_generation_prompt:
            add("<assistant>")
        prompt = RenderedPrompt(tuple(tokens), text, tuple(offsets), tuple(images))
        return replace(prompt, thought=self.thought)

    def reduction(self, width: int, height: int) -> int:
        return 1

    def prepare_image(self, image: Image.Image) -> Pixels:
        assert image.mode == "RGB"
        pixels = np.asarray(image.resize((4, 4)), np.float32).transpose(2, 0, 1)
        return Pixels((View(pixels, None, IMAGE_LENGTH, cells=Cells(2, 2)),), image.size)

    def completion(
        self, prompt: str | list[int], *, add_special_tokens: bool = True
    ) -> RenderedPrompt:
        tokens = tuple(prompt.encode()) if isinstance(prompt, str) else tuple(prompt)
        if not add_special_tokens:
            tokens += (255,)  # to be seen
        text = prompt if isinstance(prompt, str) else ""
        return RenderedPrompt(tokens, text, tuple((i, i + 1) for i in range(len(tokens))), ())

    def detokenizer(self, tokens: tuple[int, ...], shown: Mapping[int, str]) -> ByteDecoder:
        return ByteDecoder(shown)

    def tokens(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [*text.encode(), *(() if add_special_tokens else (255,))]  # to be seen

    def behind(self, text: str, *, typed: bool) -> list[int]:
        return [*text.encode()]

    def text(self, tokens: list[int]) -> str:
        return bytes(token for token in tokens if token < 256).decode("utf-8", "replace")

    def special_token(self, text: str) -> int | None:
        return {"<eos>": EOS, "<image>": IMAGE}.get(text)

    def token_name(self, token: int) -> str:
        return f"<{token}>"

    def token_of(self, text: str) -> int | None:
        return text.encode()[0] if len(text) == 1 and text.isascii() else None

    def token_text(self, token: int) -> tuple[str, bytes]:
        data = bytes([token]) if token < 256 else b""
        return data.decode("utf-8", "replace"), data


@dataclass
class FakeEngine:
    """Says ``answer`` a byte at a time, then EOS; obeys max_tokens; counts what a plan touches."""

    info: EngineInfo = INFO
    answer: str = "Hello, world!"
    delay: float = 0.0
    stall_after: int | None = None
    fail_after: int | None = None
    diverges: bool = False
    failure: Failure | None = None
    holds: bool = True
    capacity: bool = True
    alive: bool = True
    lag: Lag = field(default_factory=Lag)
    moves: bool = True
    forgets: bool = False
    unscored: object = None
    cached_tokens: int = 0
    loses_traces: bool = False
    timing: Timing = TIMING
    requests: list[GenerateRequest] = field(default_factory=list)
    aborted: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)

    @property
    def full(self) -> bool:
        return not self.capacity

    def open(self, request: GenerateRequest, deliver: Callable[[News], None]) -> Callable[[], None]:
        if not self.alive:
            raise EngineDeadError("gone")
        if not self.capacity:
            raise CapacityError("full")

        async def pump() -> None:
            try:
                async for output in self.submit(request):
                    more = output.logprobs or output.finish_reason or output.trace
                    deliver(output if more else output.tokens[0])
            except EngineDeadError as error:
                deliver(error)

        task = asyncio.create_task(pump())

        def close() -> None:
            task.cancel()
            self.running.discard(request.request_id)

        return close

    async def submit(self, request: GenerateRequest) -> AsyncIterator[EngineOutput]:
        if not self.alive:
            raise EngineDeadError("gone")
        if not self.capacity:
            raise CapacityError("full")
        self.requests.append(request)
        self.running.add(request.request_id)
        try:
            async for output in self._outputs(request):
                yield output
        finally:
            self.running.discard(request.request_id)

    async def _outputs(self, request: GenerateRequest) -> AsyncIterator[EngineOutput]:
        tokens = [*(request.sampling.forced or self.answer.encode()), EOS]
        name = request.request_id
        read = read_scores(request, self.unscored)
        if request.sampling.max_tokens == len(request.given):
            last = self._last(request, len(request.given) + 1, FinishReason.LENGTH)
            length = len(request.tokens)
            yield with_scores(last, (*pieces(request, 0, length), *read))
            return
        for count, token in enumerate(tokens, 1):
            await asyncio.sleep(self.delay)
            while self.stall_after is not None and count > self.stall_after:
                await asyncio.sleep(0.01)
                if name in self.aborted:
                    break
            if not self.alive:
                raise EngineDeadError("gone")
            if name in self.aborted:
                yield self._last(request, count, FinishReason.ABORT)
                return
            if self.fail_after is not None and count > self.fail_after:
                reason = FinishReason.ERROR
                error, acts = "/secret 0xdead", request.plan is not None
                diverged = self.diverges and acts
                yield EngineOutput(
                    request_id=name,
                    finish_reason=reason,
                    error="It cannot go on." if self.failure else error,
                    diverged=diverged,
                    failure=self.failure,
                )
                return
            entry = self._logprobs(request, token)
            if token == EOS:
                last = self._last(request, count, FinishReason.STOP, (token,), entry)
                yield with_scores(last, read)
            elif count == request.sampling.max_tokens:
                last = self._last(request, count, FinishReason.LENGTH, (token,), entry)
                yield with_scores(last, read)
                return
            else:
                trace = (*self._trace(request, count), *read)
                yield EngineOutput(request_id=name, tokens=(token,), logprobs=entry, trace=trace)
                read = ()

    def _logprobs(self, request: GenerateRequest, token: int) -> tuple[TokenLogprobs, ...]:
        wanted = request.sampling.logprobs
        if wanted is None:
            return ()
        top = tuple((i + 65, -1.0 - i) for i in range(wanted))
        return (TokenLogprobs(token, -0.5 if token != ord("!") else float("-inf"), top),)

    def _last(
        self,
        request: GenerateRequest,
        generated: int,
        reason: FinishReason,
        tokens: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprobs, ...] = (),
    ) -> EngineOutput:
        return EngineOutput(
            request_id=request.request_id,
            tokens=tokens,
            logprobs=logprobs,
            finish_reason=reason,
            cached_tokens=self.cached_tokens,
            receipt=self._receipt(request, generated),
            grammar=self._held(request, generated, reason),
            holds=b"" if request.grammar is None else HOLDS[: generated + 3],
            trace=self._trace(request, generated, last=True)
            if tokens
            else self._sums(request, generated),
            timing=self.timing,
        )

    def _held(
        self, request: GenerateRequest, generated: int, reason: FinishReason
    ) -> GrammarCount | None:
        if request.grammar is None or not self.holds:
            return None
        return GrammarCount(generated, generated // 2, reason is FinishReason.STOP)

    def _trace(
        self, request: GenerateRequest, generated: int, last: bool = False
    ) -> tuple[TracePiece, ...]:
        """What the rows behind the last output gave."""
        if self.loses_traces:
            return ()
        end = len(request.tokens) - 1 + generated
        return pieces(request, 0 if generated == 1 else end - 1, end, last)

    def _sums(self, request: GenerateRequest, generated: int) -> tuple[TracePiece, ...]:
        end = max(len(request.tokens), len(request.tokens) - 1 + generated)
        return pieces(request, end, end, last=True)

    def _receipt(self, request: GenerateRequest, generated: int) -> Receipt | None:
        plan = request.plan
        if plan is None:
            return None
        rows: dict[str, int] = {}
        for position in range(len(request.tokens) + generated - 1):
            phase = plan.phase(position)
            rows[phase] = rows.get(phase, 0) + 1
        moved = [
            SiteCount(layer, head, rows.get(Phase.GENERATED, 0))
            for edit in plan.edits
            if isinstance(edit, MassEdit)
            for layer, heads in edit.sites
            for head in heads
        ]
        if self.forgets:
            return Receipt({})
        counters = tuple(
            Counter(rule.source, name, generated)
            for rule in plan.rules
            for name in ("followed", "draws", "rejections")
        )
        return Receipt(rows, tuple(moved) if self.moves else (), counters)

    def abort(self, request_id: str) -> None:
        self.aborted.add(request_id)

    async def stats(self) -> EngineStats:
        return EngineStats(running=len(self.running))

    async def close(self) -> None:
        self.alive = False
