"""Fingerprints of programs: equal for equal programs in every process, different for all others.

Two requests whose programs have one fingerprint share a row of the control tables, and cached
pages; so whatever can differ between two plans is changed here, and must change it.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from itertools import permutations
from typing import Any

import msgspec
import numpy as np
import pytest

from saccade_interventions.edits import Gate, HeadEdit, MassEdit, ResidualEdit, ScoreEdit, Vectors
from saccade_interventions.key_weights import KeyWeights
from saccade_interventions.phases import Phase
from saccade_interventions.plan import Plan
from saccade_interventions.rules import MeasuredGains, RecentRule, Rule, SinkRule
from saccade_kernels.controls import ControlShape
from saccade_testing import catalogue, tiny
from saccade_testing.engine import REGISTRY, ask

SITES = ((0, (0, 2)), (1, (1,)))
ROWS = (Phase.QUESTION, Phase.LAST)
SHIFT = Vectors.pack(np.arange(12, dtype=np.float32).reshape(3, 4))
DIRECTION = Vectors.pack(np.eye(2, 8, dtype=np.float32))
OF_A_PROGRAM = ("scores", "masses", "heads", "residuals", MeasuredGains)
OF_TAGS = ("tags", "generated_tag", SinkRule, RecentRule)


def plan() -> Plan:
    """A program with every kind of edit, no two numbers of which are the same."""
    gates = (Gate((0.5, -1.5, 2.5), 0.125), Gate((3.5, 4.5, 5.5), 0.375))
    transform = ((1.0, 0.0625, 0.0), (0.0, 0.75, 0.0), (0.0, 0.1875, 1.0))
    return Plan(
        shape=ControlShape(2, 3, 4),
        prompt_length=9,
        question_start=4,
        classes=3,
        scores=(ScoreEdit(SITES, ROWS, (1, 2), scale=0.2, absolute=0.3, bias=0.4),),
        masses=(MassEdit(SITES, ROWS, transform, gates),),
        heads=(HeadEdit(SITES, ROWS, 1.25, SHIFT.digest),),
        residuals=(
            ResidualEdit(
                1,
                ROWS,
                DIRECTION.digest,
                1,
                scale=0.9,
                shift=0.8,
                low=-7.0,
                high=7.5,
                signed=True,
                keep_norm=True,
                onto=0,
                above=-6.0,
                below=6.5,
            ),
        ),
        vectors=(SHIFT, DIRECTION),
        rules=(
            SinkRule(3.25, (5, 6), (0, 1), ((1, 2),), 2, False),
            RecentRule(5, 9, ((0, 2),), False),
            MeasuredGains((0, 1), 2.25, ROWS, report=3),
        ),
    )


def versions(base: Plan, part: str | type[Rule]) -> Iterator[tuple[str, Plan]]:
    """Plans that differ in one place of a field, or of the rule of a kind."""
    if isinstance(part, str):
        for where, changed in mutations(getattr(base, part), part):
            yield where, replace(base, **{part: changed})
        return
    for where, changed in mutations(base.rule(part), part.__name__):
        yield where, base.with_rules(changed)
    yield f"no {part.__name__}", base.without_rules(part)


def mutations(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that differs from ``value`` in one place, and where. ``source`` is left alone."""
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            if field.name != "source":
                for where, changed in mutations(getattr(value, field.name), f".{field.name}"):
                    yield path + where, replace(value, **{field.name: changed})
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            if name != "source":
                for where, changed in mutations(getattr(value, name), f".{name}"):
                    yield path + where, msgspec.structs.replace(value, **{name: changed})
    elif isinstance(value, tuple):
        for at, item in enumerate(value):
            for where, changed in mutations(item, f"[{at}]"):
                yield path + where, (*value[:at], changed, *value[at + 1 :])
        if value:
            yield f"{path} shorter", value[:-1]
            yield f"{path} longer", (*value, value[-1])
        if value != value[::-1]:
            yield f"{path} in another order", value[::-1]
    elif isinstance(value, bool):
        yield path, not value
    elif isinstance(value, Enum):
        yield from ((f"{path} {other}", other) for other in type(value) if other != value)
    elif isinstance(value, int):
        yield path, value + 1
    elif isinstance(value, float):
        yield f"{path} a little", float(np.nextafter(value, np.inf))
        yield f"{path} sign", -value if value else 1.0
    elif isinstance(value, str):
        yield path, value[:-1] + ("0" if value[-1] != "0" else "1")
    elif value is None:
        yield path, 1
    else:
        raise TypeError(f"{path}: nobody has said how a {type(value)} is changed")


def keys(made: Plan) -> set[str]:
    return {key for key in made.program_keys.values() if key is not None}


@pytest.mark.parametrize("part", OF_A_PROGRAM)
def test_no_two_programs_share_a_fingerprint(part: str | type[Rule]) -> None:
    base = plan()
    seen = keys(base)
    for where, other in versions(base, part):
        assert other.program_keys != base.program_keys, where
        if ".phases" not in where:  # a phase that an edit leaves may be left by others the same way
            fresh = keys(other)
            assert not fresh & seen, where
            seen |= fresh


def test_a_program_says_how_many_classes_it_knows() -> None:
    assert not keys(plan()) & keys(replace(plan(), classes=4))


@pytest.mark.parametrize("part", OF_TAGS)
def test_no_two_divisions_of_the_keys_share_a_fingerprint(part: str | type[Rule]) -> None:
    base = replace(plan(), tags=())
    seen = {base.tags_key()}
    for where, changed in versions(base, part):
        other = changed.tags_key()
        assert other not in seen, where
        seen.add(other)


def test_key_weights_are_named_by_values_and_places() -> None:
    rng = np.random.default_rng(0)
    slots = [np.where(rng.random(9) < 0.5, rng.normal(size=9), 0).astype(np.float32)]
    slots += [np.roll(slots[0], 1), np.nextafter(slots[0], np.float32(9)), np.zeros(9, np.float32)]
    packed = [KeyWeights.pack(slot) for slot in slots]
    made = [(), *((one,) for one in packed), *permutations(packed, 2)]
    assert len({replace(plan(), key_weights=some).tags_key() for some in made}) == len(made)
    for slot, one in zip(slots, packed, strict=True):
        np.testing.assert_array_equal(one.unpack(9), slot)
        assert one == KeyWeights.pack(slot)


def test_the_order_in_which_rules_are_given_makes_no_difference() -> None:
    base = plan()
    for rules in permutations(base.rules):
        other = replace(base, rules=rules)
        assert other == base
        assert other.fingerprint() == base.fingerprint()


def test_a_plan_has_one_rule_of_a_kind_on_the_wire_too() -> None:
    base = plan()
    twice = msgspec.to_builtins(base)
    twice["rules"] *= 2
    with pytest.raises(msgspec.ValidationError, match="one rule of a kind"):
        msgspec.convert(twice, type=Plan)
    with pytest.raises(ValueError, match="one rule of a kind"):
        replace(base, rules=base.rules * 2)


def test_every_field_of_a_plan_is_one_of_those() -> None:
    """Or says where its rows are, or is brought by its digest, or is tested by kind of rule."""
    sizes = {"shape", "prompt_length", "question_start", "classes"}
    tested = {part for part in (*OF_A_PROGRAM, *OF_TAGS) if isinstance(part, str)}
    assert {field.name for field in fields(Plan)} == tested | sizes | {
        "vectors",
        "key_weights",
        "rules",
    }


def test_edits_of_different_kinds_never_look_alike() -> None:
    """With the same fields: only their names tell them apart."""
    kinds = [ScoreEdit(SITES, ROWS, (1,)), MassEdit(SITES, ROWS, ((1.0,),)), HeadEdit(SITES, ROWS)]
    empty = Plan(ControlShape(2, 3, 4), 9, 4, 3)
    made = [
        replace(empty, scores=kinds[:1]),
        replace(empty, masses=kinds[1:2]),
        replace(empty, heads=kinds[2:]),
        replace(empty, scores=kinds[:1], heads=kinds[2:]),
    ]
    assert len(set().union(*map(keys, made))) == len(made)


def test_whose_an_edit_is_and_what_other_phases_do_make_no_difference() -> None:
    base = plan()
    edits = {name: getattr(base, name) for name in ("scores", "masses", "heads", "residuals")}
    moved = {name: tuple(replace(e, source=3) for e in some) for name, some in edits.items()}
    assert replace(base, **moved).program_keys == base.program_keys
    elsewhere = ScoreEdit(SITES, (Phase.GENERATED,), (1,), scale=9.0)
    added = replace(base, scores=(*base.scores, elsewhere))
    for phase in ROWS:
        assert added.program_key(phase) == base.program_key(phase) is not None
    assert added.program_key(Phase.GENERATED) != base.program_key(Phase.GENERATED)
    assert base.program_key(Phase.PREFIX) is None


def test_the_wire_changes_no_fingerprint() -> None:
    base = plan()
    wanted = dict(base.program_keys)
    arrived = msgspec.msgpack.decode(msgspec.msgpack.encode(base), type=Plan)
    assert arrived == base
    assert dict(arrived.program_keys) == wanted
    assert arrived.tags_key() == base.tags_key()


@pytest.mark.parametrize("name", catalogue.WITH_IMAGE)
def test_no_method_makes_numbers_that_the_wire_writes_otherwise(name: str) -> None:
    """1 == 1.0, but their bytes differ."""
    prompt = tiny.prompt("llava", images=2, seed=1, text=30)
    methods = REGISTRY.parse(list(catalogue.WITH_IMAGE[name]))
    request = ask(prompt, methods, facts=catalogue.FACTS, artifacts=catalogue.STORE.get)
    for made in (request.plan, *(branch.plan for branch in request.branches)):
        if made is not None:
            arrived = msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=Plan)
            assert arrived == made
            assert arrived.fingerprint() == made.fingerprint()


def test_every_process_finds_the_same() -> None:
    """Fingerprints say nothing of the memory or the hash seed of who computes them."""
    program = (
        "import sys, msgspec\n"
        "from saccade_interventions.plan import Plan\n"
        "made = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Plan)\n"
        "print(*made.program_keys.values(), made.tags_key(), made.fingerprint())\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            input=msgspec.msgpack.encode(plan()),
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout.decode()
        for seed in ("1", "2")
    }
    base = plan()
    wanted = [*base.program_keys.values(), base.tags_key(), base.fingerprint()]
    assert found == {" ".join(map(str, wanted)) + "\n"}


def test_the_same_numbers_in_another_shape_are_other_vectors() -> None:
    """What a head adds and a direction of the residual lie side by side in a plan."""
    numbers = np.arange(1, 13, dtype=np.float32)
    shapes = [(1, 12), (12, 1), (3, 4), (4, 3)]
    assert len({Vectors.pack(numbers.reshape(shape)).digest for shape in shapes}) == 4
