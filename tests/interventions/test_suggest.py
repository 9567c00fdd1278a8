"""What a mistyped name was meant to be: the nearest by edit distance, or nothing."""

import pytest

from saccade_interventions.registry import Registry
from saccade_interventions.suggest import hint, nearest, unknown

METHODS = list(Registry.discover().methods)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("vra", ["var"]),  # two letters swapped are one step; to "vaf" there are two
        ("vfa", ["vaf"]),
        ("varr", ["var"]),
        ("VAR", ["var"]),
        ("pia", ["pai"]),
        ("pai-contrast", ["pai_contrast"]),
        ("headsteering", ["head_steering"]),
        ("vr", ["var", "vhr"]),
        ("steer", ["steering"]),
        ("head", ["head_ablation", "head_scale", "head_steering"]),
        ("xyz", []),
        ("vv", []),
        ("", []),
        ("x", []),
        ("a" * 10_000, []),
    ],
)
def test_the_nearest_methods(given: str, meant: list[str]) -> None:
    assert nearest(given, METHODS) == meant
    assert nearest(given, reversed(METHODS)) == meant


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_slip_of_one_letter_finds_every_method(name: str) -> None:
    swapped = name[0] + name[2] + name[1] + name[3:]
    for slip in (name[:-1] + "q", swapped, name + "e", name[:1] + "q" + name[1:]):
        assert name in nearest(slip, METHODS), slip


def test_what_is_said() -> None:
    assert unknown("field", "bta", ["beta", "rho"]) == 'unknown field "bta"; did you mean "beta"?'
    assert unknown("field", "x", ["rho", "beta"]) == 'unknown field "x"; known: beta, rho'
    assert hint("vr", ["var", "vhr"]) == 'did you mean "var" or "vhr"?'
    assert hint("x", ["var"], "ask") == "ask"
    assert hint("x", ["z"], "ask") == "ask"
