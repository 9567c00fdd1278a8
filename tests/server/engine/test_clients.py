"""The engine behind its two clients: a thread of this process, and a process of its own."""

import asyncio
import os
import signal
import tempfile
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from msgspec.structs import replace

from saccade_server.demo import model_path
from saccade_server.engine.client import CapacityError, EngineDeadError
from saccade_server.engine.config import EngineConfig
from saccade_server.engine.heartbeat import Progress
from saccade_server.engine.local import LocalEngine
from saccade_server.engine.loop import _Commands, run_loop
from saccade_server.engine.messages import (
    Abort,
    Outputs,
    Shutdown,
    Stats,
    Submit,
    decode_command,
    decode_reply,
    encode,
)
from saccade_server.engine.remote import READ_AT_ONCE, RemoteEngine, ended
from saccade_server.engine.request import (
    EngineOutput,
    EngineStats,
    FinishReason,
    GenerateRequest,
    SamplingParams,
    TokenLogprobs,
)
from saccade_testing import tiny
from saccade_testing.engine import MakeCore, make_request, run


async def collect(engine: Any, request: Any) -> tuple[list[int], Any]:
    tokens: list[int] = []
    last = None
    async for output in engine.submit(request):
        tokens += output.tokens
        last = output
    return tokens, last


def test_local_engine_serves_many_at_once(make_core: MakeCore) -> None:
    prompts = [tiny.prompt("llava", images=s % 2, seed=s) for s in range(6)]
    requests = [make_request(prompt, str(i)) for i, prompt in enumerate(prompts)]
    wanted = run(make_core("llava"), requests)

    async def main() -> None:
        engine = LocalEngine(make_core("llava"))
        results = await asyncio.gather(*(collect(engine, request) for request in requests))
        for index, (tokens, last) in enumerate(results):
            assert tokens == wanted[str(index)].tokens
            assert last.finish_reason is not None
        await engine.close()
        assert not engine.alive
        with pytest.raises(EngineDeadError):
            await collect(engine, requests[0])

    asyncio.run(main())


def test_leaving_the_iterator_aborts(make_core: MakeCore) -> None:
    request = make_request(tiny.prompt("llama"), "r", None, 400, ignore_eos=True)

    async def main() -> None:
        engine = LocalEngine(make_core("llama"))
        stream = engine.submit(request)
        await anext(stream)
        await stream.aclose()
        for _ in range(200):
            stats = await engine.stats()
            if stats.running == 0:
                break
            await asyncio.sleep(0.01)
        assert stats.running == 0
        assert stats.cache_usage == 0
        assert stats.generated_tokens < 400
        await engine.close()

    asyncio.run(main())


def test_abort_ends_the_stream_with_a_receipt_of_what_ran(make_core: MakeCore) -> None:
    request = make_request(tiny.prompt("llama"), "r", None, 400, ignore_eos=True)

    async def main() -> None:
        engine = LocalEngine(make_core("llama"))
        outputs = []
        async for output in engine.submit(request):
            outputs.append(output)
            if len(outputs) == 3:
                engine.abort("r")
        assert outputs[-1].finish_reason is FinishReason.ABORT
        await engine.close()

    asyncio.run(main())


def test_a_full_queue_is_said_and_not_waited_for(make_core: MakeCore) -> None:
    prompt = tiny.prompt("llama")

    async def main() -> None:
        engine = LocalEngine(make_core("llama", max_num_seqs=1, max_waiting=1))
        streams = [
            engine.submit(make_request(prompt, str(i), None, 300, ignore_eos=True))
            for i in range(2)
        ]
        first = asyncio.create_task(anext(streams[0]))
        second = asyncio.create_task(anext(streams[1]))
        await first
        with pytest.raises(CapacityError):
            await anext(engine.submit(make_request(prompt, "third")))
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        await streams[0].aclose()
        await engine.close()

    asyncio.run(main())


def test_a_core_that_raises_is_a_dead_engine(
    make_core: MakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = make_core("llama")

    def fail() -> None:
        raise RuntimeError("lost the device")

    monkeypatch.setattr(core, "step", fail)

    async def main() -> None:
        engine = LocalEngine(core)
        with pytest.raises(EngineDeadError, match="lost the device"):
            await collect(engine, make_request(tiny.prompt("llama")))
        assert not engine.alive
        with pytest.raises(EngineDeadError):
            await engine.stats()

    asyncio.run(main())


def test_an_image_is_sent_once_and_kept_until_its_last_request_ends(
    make_core: MakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = tiny.prompt("llava", images=2, seed=1)
    size = sum(image.pixels.nbytes for image in prompt.images)

    async def main() -> None:
        engine = LocalEngine(make_core("llava", max_pixel_bytes=size))
        sent: list[Any] = []
        send = engine._commands.put
        monkeypatch.setattr(engine, "_send", lambda c: (sent.append(c), send(c)))
        monkeypatch.setattr(engine._lender, "_send", engine._send)
        requests = [make_request(prompt, str(i)) for i in range(3)]
        results = await asyncio.gather(*(collect(engine, request) for request in requests))
        assert len({tuple(tokens) for tokens, _ in results}) == 1
        kinds = [type(command).__name__ for command in sent]
        assert kinds.count("Lend") == kinds.count("Reclaim") == 2
        assert kinds.index("Lend") == 0
        assert kinds[-1] == "Reclaim"
        first = engine.submit(requests[0])
        await anext(first)
        with pytest.raises(CapacityError, match="bytes"):
            await anext(engine.submit(make_request(tiny.prompt("llava", images=1, seed=9), "x")))
        await first.aclose()
        again = make_request(prompt, "again")
        assert (await collect(engine, again))[0] == results[0][0]
        await engine.close()

    asyncio.run(main())


def test_messages_survive_the_wire() -> None:
    request = make_request(tiny.prompt("qwen2_5_vl"), "r", None, 4, logit_bias={3: 1.5})
    found = decode_command(encode(Submit(request, 7)))
    assert isinstance(found, Submit)
    assert found.request == request
    with pytest.raises(msgspec.DecodeError):
        decode_command(b"\x80\x04\x95not msgpack")


class Talker:
    """A core whose sequences all get a token each step: some with more news than that."""

    def __init__(self) -> None:
        self.steps = 0
        self.names: list[str] = []

    @property
    def busy(self) -> bool:
        return bool(self.names)

    def submit(self, request: GenerateRequest) -> EngineOutput | None:
        if request.request_id in self.names:
            reason = FinishReason.ERROR
            return EngineOutput(request_id=request.request_id, finish_reason=reason, error="twice")
        self.names.append(request.request_id)
        return None

    def abort(self, name: str) -> None:
        self.names.remove(name)

    def step(self) -> list[EngineOutput]:
        self.steps += 1
        more = {"b": {"logprobs": (TokenLogprobs(7, -1.0),)}, "c": {"tokens": (1, 2)}}
        made = [
            EngineOutput(request_id=name, **{"tokens": (self.steps,), **more.get(name, {})})
            for name in self.names
        ]
        if self.steps == 3:
            self.names.clear()
            made = [replace(output, finish_reason=FinishReason.LENGTH) for output in made]
        return made


def test_a_step_is_one_message_and_a_token_two_numbers_in_it() -> None:
    commands = [Submit(demo_request(name, 9), number) for number, name in enumerate("abcd", 40)]
    commands.append(Submit(demo_request("a", 9), 50))
    sent: list[Any] = []
    told = [commands[:1], commands[1:], [], [Shutdown()]]
    core: Any = Talker()
    run_loop(core, lambda wait: told.pop(0), sent.append, Progress())
    first, refused, second, last = sent
    assert first == Outputs([40], [1])
    assert refused.outputs[0].error == "twice"  # the first one's number is still its own
    assert (second.numbers, second.tokens) == ([40, 43], [2, 2])
    assert [output.request_id for output in second.outputs] == ["b", "c"]
    assert second.outputs[1].tokens == (1, 2)
    assert (last.numbers, last.tokens) == ([], [])
    assert [output.request_id for output in last.outputs] == ["a", "b", "c", "d"]
    for reply in sent:
        assert decode_reply(encode(reply)) == reply
    assert len(encode(Outputs(list(range(256)), [999] * 256))) < 256 * 8


def test_nothing_is_kept_of_a_sequence_that_has_ended() -> None:
    core: Any = Talker()
    commands = _Commands(core)
    for number, name in enumerate("abc"):
        commands.obey(Submit(demo_request(name, 9), number))
    while core.busy:
        commands.pack(core.step())
    assert commands._numbers == {}


def demo_request(name: str, max_tokens: int) -> GenerateRequest:
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return GenerateRequest(request_id=name, tokens=(1, 40, 41, 42), sampling=sampling)


def test_engine_process_serves_dies_and_is_missed() -> None:
    """One process for the whole life, since each start imports torch and transformers."""

    async def main() -> None:
        engine = await RemoteEngine.start(EngineConfig(model=str(model_path()), threads=1))
        assert engine.info.family == "llava"
        both = [demo_request("a", 9), demo_request("b", 9)]
        results = await asyncio.gather(*(collect(engine, request) for request in both))
        assert results[0][0] == results[1][0]
        assert len(results[0][0]) == 9
        assert (await engine.stats()).generated_tokens == 18
        process = engine._process
        assert process is not None
        stream = engine.submit(demo_request("c", 900))
        await anext(stream)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(EngineDeadError, match="ended by SIGKILL"):
            async for _ in stream:
                pass
        assert not engine.alive
        folder = engine._folder.path
        await engine.close()
        assert not folder.exists()

    asyncio.run(main())


def test_a_talkative_engine_leaves_everything_else_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many replies wait, and however often something is sent meanwhile."""

    async def main() -> None:
        engine = RemoteEngine()
        seen: list[Any] = []
        monkeypatch.setattr(engine, "_receive", seen.append)
        with zmq.Context() as context, context.socket(zmq.PAIR) as other:
            other.linger = 0  # nobody waits for what a closed engine will not read
            other.connect(engine._endpoint)
            for ticket in range(200):
                other.send(encode(Stats(ticket, EngineStats())))
            assert engine._socket.poll(10_000)
            engine._event_loop.add_reader(engine._socket, engine._read)
            try:
                while len(seen) < 200:
                    before = len(seen)
                    for _ in range(3):
                        engine._send(Abort("nobody"))
                    await asyncio.sleep(0)
                    assert len(seen) - before <= 2 * READ_AT_ONCE  # the descriptor's turn, our own
            finally:
                await engine.close()
        assert [reply.ticket for reply in seen] == list(range(200))

    asyncio.run(main())


def test_an_engine_that_is_too_slow_says_so() -> None:
    async def main() -> None:
        config = EngineConfig(model=str(model_path()), threads=1)
        with pytest.raises(TimeoutError, match=r"did not start within 0 s"):
            await RemoteEngine.start(config, timeout=0.01)

    asyncio.run(main())


def test_how_a_process_ended_is_said_in_words() -> None:
    assert ended(1) == "the engine process ended with exit code 1"
    assert ended(-signal.SIGKILL).startswith("the engine process was ended by SIGKILL; ")
    assert ended(-signal.SIGSEGV) == "the engine process was ended by SIGSEGV"
    assert ended(-64) == "the engine process was ended by SIGRTMAX"


def test_a_temporary_folder_that_cannot_hold_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket's path has a hundred characters at most; nothing may be left behind."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))

    async def main() -> None:
        with pytest.raises(OSError, match="set TMPDIR to another"):
            RemoteEngine()

    asyncio.run(main())
    assert not list(folder.iterdir())


def test_a_local_engine_in_a_long_step_stalls_and_then_goes_on(
    make_core: MakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = make_core("llama")
    may_go_on = threading.Event()
    honest = core.step

    def slow() -> Any:
        may_go_on.wait(60)
        return honest()

    monkeypatch.setattr(core, "step", slow)

    async def main() -> None:
        engine = LocalEngine(core)
        asking = asyncio.create_task(collect(engine, make_request(tiny.prompt("llama"), "r")))
        while engine.lag.stalled < 0.4:
            await asyncio.sleep(0.05)
        assert engine.lag.silent == 0
        may_go_on.set()
        await asking
        while engine.lag.stalled > 0:
            await asyncio.sleep(0.05)
        await engine.close()

    asyncio.run(main())


def test_an_engine_that_cannot_start_says_why() -> None:
    async def main() -> None:
        with pytest.raises(EngineDeadError, match="no such folder"):
            await RemoteEngine.start(EngineConfig(model="/no/such/model"))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_batched_tokens", 3), ("cache_tokens", 64), ("max_programs", 1), ("max_waiting", 0)],
)
def test_impossible_limits_are_refused(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=field):
        EngineConfig(model="m", **{field: value})
