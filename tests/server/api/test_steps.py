"""What clients get of news that come step by step: in order, counted, and no more than asked."""

import json
from typing import Any

from saccade_server.engine.messages import Outputs
from saccade_server.engine.request import EngineOutput
from saccade_testing.api import steps


def test_a_token_does_not_overtake_what_came_before_it() -> None:
    """News with more than a token wake the answer, which has not had them when the token comes."""

    async def test(stand: Any) -> None:
        stream = await stand.ask()
        stand.engine.step("a")
        await steps.settled()
        name = stand.engine.submitted[0].request.request_id
        more = EngineOutput(request_id=name, tokens=(ord("b"), ord("c")))
        stand.engine._receive(Outputs(outputs=[more]))
        stand.engine.step("d")
        await steps.settled()
        stand.engine.end()
        await steps.settled()
        assert steps.texts(stream) == "abcd!"

    steps.run(test)


def test_usage_so_far_is_that_of_each_event() -> None:
    async def test(stand: Any) -> None:
        options = {"include_usage": True, "continuous_usage_stats": True}
        stream = await stand.ask(stream_options=options)
        for token in "abc":
            stand.engine.step(token)
            await steps.settled()
        stand.engine.end()
        await steps.settled()
        counts = [event["usage"]["completion_tokens"] for event in steps.events(stream)[:-1]]
        assert counts == [1, 1, 2, 3, 4, 4, 4]  # a role, four texts, an end, and the whole

    steps.run(test)


def test_a_stop_string_ends_an_answer_that_is_not_streamed_at_once() -> None:
    async def test(stand: Any) -> None:
        whole = await stand.ask(stream=False, stop=["bc"])
        for token in "abc":
            assert not stand.engine.aborted
            stand.engine.step(token)
            await steps.settled()
        assert stand.engine.aborted == [stand.engine.submitted[0].request.request_id]
        stand.engine.end()
        await steps.settled()
        answer = json.loads(b"".join(whole.transport.apart.writes).partition(b"\r\n\r\n")[2])
        assert answer["choices"][0]["message"]["content"] == "a"

    steps.run(test)


def test_text_that_may_be_a_stop_is_held_back_on_the_short_way_too() -> None:
    async def test(stand: Any) -> None:
        stream = await stand.ask(stop=["cd"])
        for token in "abcd":
            stand.engine.step(token)
            await steps.settled()
        assert steps.texts(stream) == "ab"
        assert len(stand.engine.aborted) == 1
        stand.engine.step("e")
        stand.engine.end()
        await steps.settled()
        assert steps.texts(stream) == "ab"
        assert steps.events(stream)[-2]["choices"][0]["finish_reason"] == "stop"

    steps.run(test)
