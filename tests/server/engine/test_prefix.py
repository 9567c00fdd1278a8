"""Page keys: equal exactly where keys and values are equal."""

from dataclasses import replace

import numpy as np
from msgspec import structs

from saccade_interventions.builder import PlanBuilder
from saccade_interventions.phases import parse_rows
from saccade_interventions.plan import Plan
from saccade_interventions.rules import HeadSinkRule, RecentRule, SinkRule
from saccade_kernels.batch import PAGE
from saccade_kernels.controls import ControlShape
from saccade_server.engine.prefix import PageKeyer
from saccade_server.engine.request import Array, GenerateRequest, ImageInput, SamplingParams
from saccade_server.engine.sequence import Sequence

LENGTH = 300
IMAGE = (70, 60)  # start, length: pages 1 and 2 hold image tokens


def plan(
    rows: str = "last+generated",
    strength: float = 1.0,
    length: int = LENGTH,
    sinks: SinkRule | None = None,
    generated_tag: bool = False,
) -> Plan:
    builder = PlanBuilder(ControlShape(2, 2, 4), length, sum(IMAGE))
    tag = builder.tag([(IMAGE[0], sum(IMAGE))])
    builder.score(((1, (0, 1)),), [tag], parse_rows(rows), bias=strength)
    if sinks is not None:
        builder.rule(sinks)
    if generated_tag:
        builder.tag_generated(tag)
    return builder.build()


def keys(
    plan: Plan | None = None,
    tokens: list[int] | None = None,
    digest: str = "x",
    more: list[int] | None = None,
    salt: str = "",
) -> list[bytes]:
    tokens = tokens or list(range(LENGTH))
    image = ImageInput(digest, IMAGE[0], IMAGE[1], Array("<f4", (0,), b""))
    request = GenerateRequest(
        request_id="r",
        tokens=tuple(tokens),
        images=(image,),
        plan=plan,
        sampling=SamplingParams(max_tokens=500),
        cache_salt=salt,
    )
    sequence = Sequence(request)
    sequence.tokens += more or []
    PageKeyer(request).extend(sequence, len(sequence.tokens))
    return sequence.page_keys


def shared(a: list[bytes], b: list[bytes]) -> int:
    """Leading keys in common; later ones must then all differ."""
    same = [x == y for x, y in zip(a, b, strict=False)]
    count = same.index(False) if False in same else len(same)
    assert not any(same[count:])
    return count


def test_only_full_pages_have_keys() -> None:
    assert len(keys()) == LENGTH // 64


def test_a_changed_token_changes_its_page_and_all_later_ones() -> None:
    tokens = list(range(LENGTH))
    tokens[130] += 1
    assert shared(keys(), keys(tokens=tokens)) == 2


def test_another_image_shares_nothing_from_its_start_on() -> None:
    assert shared(keys(), keys(digest="y")) == 1


def test_an_untouched_prefix_is_shared_with_plain_requests() -> None:
    """Rows are edited from the last prompt row on, which is in the unfinished fifth page."""
    assert shared(keys(), keys(plan())) == 4


def test_edited_rows_end_the_sharing() -> None:
    """The question starts at 130, in the third page."""
    assert shared(keys(), keys(plan("question+generated"))) == 2
    assert shared(keys(), keys(plan("prompt"))) == 0


def test_equal_plans_share_and_others_do_not() -> None:
    edited = keys(plan("prompt"))
    assert shared(edited, keys(plan("prompt"))) == 4
    assert shared(edited, keys(plan("prompt", strength=2.0))) == 0


def test_what_edited_rows_see_counts_too() -> None:
    """Same program, other key classes."""
    first = plan("question+generated")
    run = replace(first.tags[0], end=first.tags[0].end - 1)
    assert shared(keys(first), keys(replace(first, tags=(run,)))) == 2


def test_what_single_keys_weigh_counts_too() -> None:
    """Same program, other values or other keys of the same values."""

    def weighing(values: list[float], start: int) -> Plan:
        builder = PlanBuilder(ControlShape(2, 2, 4), LENGTH, sum(IMAGE))
        slot = builder.key_weights(np.array(values), [(start, start + len(values))])
        builder.score(((1, (0, 1)),), [], parse_rows("question+generated"), slot=slot)
        return builder.build()

    own = keys(weighing([1.0, 2.0], 5))
    assert shared(own, keys(weighing([1.0, 2.0], 5))) == 4
    for other in (weighing([1.0, 2.5], 5), weighing([1.0, 2.0], 6), weighing([1.0], 5)):
        assert shared(own, keys(other)) == 2  # rows before the question are anybody's
    assert shared(own, keys()) == 2


def test_pages_filled_while_decoding_are_not_a_later_prompt() -> None:
    """Turn two has the same tokens as prompt, not edited there: only turn one's prompt is shared.

    The prompt ends at 300, inside page 4 (256..319), which holds the first edited rows.
    """
    more = list(range(200))
    first = keys(plan(), more=more)
    plain = keys(tokens=[*range(LENGTH), *more])
    again = keys(plan(length=LENGTH + 200), tokens=[*range(LENGTH), *more])
    assert shared(first, plain) == 4
    assert shared(first, again) == 4
    assert shared(first, keys(plan(), more=more)) == 7


def test_the_end_of_the_prompt_counts_where_rows_are_edited() -> None:
    """The same tokens, programs and tags, but 10 of them are generated here and prompt there."""
    more = list(range(LENGTH, LENGTH + 84))
    every = "prompt+generated"
    short = keys(plan(every), more=more)
    longer = keys(plan(every, length=LENGTH + 10), [*range(LENGTH + 10)], more=more[10:])
    assert len(short) == len(longer) == 6
    assert shared(short, longer) == 4


def test_recent_keys_divide_pages_of_generated_rows() -> None:
    """Pages without an edited row are shared as ever; whose rule it is makes no difference."""
    more, base = list(range(200)), plan("generated")
    rules = [(), *((RecentRule(width, LENGTH, ((0, 2),)),) for width in (5, 9))]
    plain, near, far = (keys(replace(base, classes=3, rules=some), more=more) for some in rules)
    assert shared(plain, near) == shared(near, far) == shared(keys(), near) == 4
    again = replace(base, classes=3, rules=(rules[1][0].sourced(1),))
    assert shared(near, keys(again, more=more)) == 7


def test_sink_scores_are_an_extra_of_the_page_not_part_of_its_key() -> None:
    """Plain requests share a scored page; a plan that needs scores asks for exactly its own."""
    rule = SinkRule(threshold=4.0, dims=(1,), layers=(1,), remap=((1, 0),))
    assert shared(keys(plan(sinks=rule)), keys()) == 4

    def keyer(rule: SinkRule | None) -> PageKeyer:
        sampling = SamplingParams(max_tokens=500)
        tokens = tuple(range(LENGTH))
        chosen = plan(sinks=rule)
        return PageKeyer(
            GenerateRequest(request_id="r", tokens=tokens, plan=chosen, sampling=sampling)
        )

    assert keyer(None).needs is None
    needs = keyer(rule).needs
    assert needs is not None
    assert keyer(structs.replace(rule, threshold=9.0)).needs == needs
    assert keyer(structs.replace(rule, dims=(2,))).needs != needs
    assert [keyer(rule).extra(page) for page in (0, 3, 4)] == [needs, needs, None]
    assert keyer(structs.replace(rule, generated=True)).extra(4) == needs


def test_pages_of_rows_that_follow_what_was_measured_are_their_sequence_s_own() -> None:
    """As the plan says, whoever made the request."""
    rule = HeadSinkRule(((1, (0, 1)),), 0.1)
    private = plan().with_rules(rule)
    assert shared(keys(private), keys(private)) == shared(keys(private), keys()) == 0


def test_pages_are_shared_under_one_salt() -> None:
    assert shared(keys(salt="a"), keys(salt="a")) == LENGTH // PAGE
    assert shared(keys(salt="a"), keys(salt="b")) == shared(keys(salt="a"), keys()) == 0


def test_tokens_are_the_same_whether_they_came_or_were_drawn() -> None:
    tokens = [(7 * at) % 1000 for at in range(LENGTH)]
    known = keys(tokens=tokens)
    assert len(known) == len(set(known)) == LENGTH // PAGE
    for came in (1, 63, 64, 65, 200):
        assert keys(tokens=tokens[:came], more=tokens[came:]) == known
    for at in (0, 63, 64, 255):
        other = [*tokens]
        other[at] += 1 << 32
        assert shared(keys(tokens=other), known) == at // PAGE


def test_keys_are_the_same_in_however_many_parts_they_are_made() -> None:
    known = keys(plan(rows="prompt+generated"))
    request = GenerateRequest(
        request_id="r",
        tokens=tuple(range(LENGTH)),
        images=(ImageInput("x", *IMAGE, Array("<f4", (0,), b"")),),
        plan=plan(rows="prompt+generated"),
        sampling=SamplingParams(max_tokens=500),
    )
    sequence, keyer = Sequence(request), PageKeyer(request)
    for length in (0, 10, 64, 64, 129, 255, LENGTH):
        keyer.extend(sequence, length)
        assert sequence.page_keys == known[: length // PAGE]
