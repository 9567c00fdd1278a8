"""Counts of loops in a small disassembly, each known by hand."""

import subprocess
from pathlib import Path

import pytest

pytest.importorskip("triton")

from saccade_kernels.gpu.instructions import DISASSEMBLER, Loop, listing, loops, loops_of


def code(*lines: str) -> str:
    """As the disassembler prints it: addresses and labels."""
    text, address = ["\t.section\t.text.kernel", ".text.kernel:"], 0
    for line in lines:
        if line.endswith(":"):
            text.append(line)
            continue
        text.append(f"        /*{address:04x}*/                   {line} ;")
        address += 16
    return "\n".join(text)


FILLING = ["FFMA R1, R2, R3, R4"] * 20
PRODUCT = "HMMA.16816.F32.BF16 R4, R8, R12, R4"


def test_a_straight_loop():
    text = code("MOV R1, R2", ".L_x_0:", *FILLING, PRODUCT, "@P0 BRA `(.L_x_0)", "EXIT")
    assert loops(listing(text)) == [Loop(22, 22, 1)]


def test_a_branch_inside_makes_a_cheap_and_a_dear_way():
    body = (".L_x_0:", *FILLING, "@P1 BRA `(.L_x_1)", *FILLING[:7], ".L_x_1:", "@P0 BRA `(.L_x_0)")
    assert loops(listing(code(*body, "EXIT"))) == [Loop(22, 29, 0)]


@pytest.mark.parametrize(
    "branch",
    ["@!P1 BRA `(.L_x_1)", "BRA.U UP0, `(.L_x_1)", "BRA !P2, `(.L_x_1)", "BRA.DIV UR4, `(.L_x_1)"],
)
def test_conditions_are_seen_wherever_they_stand(branch):
    body = (".L_x_0:", *FILLING, branch, *FILLING[:7], ".L_x_1:", "@P0 BRA `(.L_x_0)")
    assert loops(listing(code(*body, "EXIT"))) == [Loop(22, 29, 0)]


def test_what_a_branch_leaps_over_is_not_counted():
    body = (".L_x_0:", *FILLING, "BRA `(.L_x_1)", *FILLING[:7], ".L_x_1:", "@P0 BRA `(.L_x_0)")
    assert loops(listing(code(*body, "EXIT"))) == [Loop(22, 22, 0)]


def test_a_way_that_leaves_the_loop_is_no_round():
    body = (".L_x_0:", *FILLING, "@P1 BRA `(.L_x_1)", *FILLING, "BRA `(.L_x_0)", ".L_x_1:", "EXIT")
    assert loops(listing(code(*body))) == [Loop(42, 42, 0)]
    body = (".L_x_0:", *FILLING, "@P1 EXIT", *FILLING, "BRA `(.L_x_0)")
    assert loops(listing(code(*body))) == [Loop(42, 42, 0)]


def test_two_branches_back_are_one_loop():
    body = (".L_x_0:", *FILLING, "@P1 BRA `(.L_x_0)", *FILLING, "@P0 BRA `(.L_x_0)", "EXIT")
    assert loops(listing(code(*body))) == [Loop(21, 42, 0)]


def test_a_loop_inside_is_a_loop_of_its_own():
    inner = (".L_x_1:", *FILLING, PRODUCT, "@P1 BRA `(.L_x_1)")
    body = (".L_x_0:", *FILLING, *inner, "@P0 BRA `(.L_x_0)", "EXIT")
    assert loops(listing(code(*body))) == [Loop(43, 43, 1), Loop(22, 22, 1)]


def test_short_loops_are_left_out():
    assert loops(listing(code(".L_x_0:", "BRA `(.L_x_0)"))) == []


def test_the_disassembler_is_there():
    assert Path(DISASSEMBLER).is_file()
    with pytest.raises(subprocess.CalledProcessError):
        loops_of(b"no kernel")
