"""The digest of a form follows all that its compiled code comes from, and nothing else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from saccade_kernels.gpu.digest import digest
from saccade_kernels.gpu.offline import Variant
from saccade_testing.modules import import_file

SOURCE = '''
import triton
import triton.language as tl

WIDTH: tl.constexpr = tl.constexpr(8)
FIXED = ["count"]


@triton.jit
def twice(x):
    """Called."""
    return x * 2  # by two


@triton.jit(do_not_specialize=FIXED)
def kernel(source, count, BLOCK: tl.constexpr):
    """Doubles some numbers."""
    at = tl.arange(0, WIDTH)
    tl.store(source + at, twice(tl.load(source + at)))
'''


@pytest.fixture
def form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``form(old, new)``: the kernel above with a text replaced."""
    made: list[int] = []

    def build(old: str = "", new: str = "") -> Variant:
        assert old in SOURCE
        path = tmp_path / str(len(made)) / "form.py"
        made.append(0)
        path.parent.mkdir()
        path.write_text(SOURCE.replace(old, new) if old else SOURCE)
        module = import_file(path, monkeypatch)
        types = {"source": "*fp32", "count": "i32"}
        return Variant("form", module.kernel, types, {"BLOCK": 64}, 4, 3)

    return build


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x * 2", "x * 3"),
        ("constexpr(8)", "constexpr(16)"),
        ('["count"]', "[]"),
        ("source + at, twice", "source + at + 1, twice"),
    ],
    ids=["a called function", "a number", "what is specialised", "the kernel"],
)
def test_code_changes_it(old: str, new: str, form: Any) -> None:
    assert digest(form(old, new)) != digest(form())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # by two", ""),
        ("Called.", "Called by the kernel."),
        ("    at = tl.arange", "\n    # places\n    at = tl.arange"),
        ("import triton\n", "import triton\n\n\n"),
    ],
    ids=["a comment", "a docstring", "a line", "a place"],
)
def test_words_do_not(old: str, new: str, form: Any) -> None:
    assert digest(form(old, new)) == digest(form())


def test_neither_does_the_form_s_name_but_how_it_is_compiled_does(form: Any) -> None:
    plain = form()
    same = [replace(plain, name="other"), replace(plain, types={**plain.types, "unused": "i32"})]
    others = [
        replace(plain, num_warps=8),
        replace(plain, num_stages=2),
        replace(plain, constants={"BLOCK": 128}),
        replace(plain, types={**plain.types, "source": "*bf16"}),
    ]
    assert {digest(one) for one in same} == {digest(plain)}
    assert len({digest(one) for one in [plain, *others]}) == 5
