"""How each kernel is launched, read from tuning.json: chosen offline, never while serving.

The key is the shape a kernel is compiled for. The file has tables of cards ("h200") and of
capabilities ("sm_86"), each of which names the one that is asked for what it lacks; the last one
asked is the default. benchmarks/tune.py adopts entries of cards; an entry says whether it was
measured on a GPU or only chosen by its compiled code.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import torch

from saccade_kernels.batch import PAGE
from saccade_kernels.gpu import device


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """Launch of the split-KV decode kernel."""

    num_warps: int
    num_stages: int
    split: int  # least keys of a split, a multiple of PAGE
    max_splits: int  # beyond this many the splits grow
    block_keys: int = PAGE  # keys of a tile, a power of two and at most a page
    max_registers: int = 0  # of a thread; 0: as many as the compiler likes
    blocks: int = 2  # that a multiprocessor runs at a time


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """Launch of a prefill kernel: a tile of query rows against a page of keys or two."""

    block_m: int
    num_warps: int
    num_stages: int
    descriptors: bool = False  # keys and values through TMA descriptors
    block_keys: int = PAGE  # keys of a step; two pages are read without descriptors
    # Of the plain form alone: warps that load beside those that multiply, where there is a form.
    specialised: bool = False


@dataclass(frozen=True, slots=True)
class SplitConfig:
    """Which rows of a prefill are split over their keys, and the launch of their kernel."""

    block_m: int  # rows of a tile, a power of two, at most PAGE
    num_warps: int
    num_stages: int
    split: int  # least keys of a split, a multiple of PAGE
    max_splits: int  # of a row whose run has at most PAGE rows; of longer runs fewer
    most_rows: int  # of a run that is split; 0: none is
    least_keys: int  # before a row that is split


@dataclass(frozen=True, slots=True)
class SmallConfig:
    """Launch of a kernel between a layer's products. Sizes are powers of two."""

    values: int  # of a thread; more where the warps are not enough
    most_warps: int
    block: int = 0  # values of a program; 0: a whole row

    def warps(self, block: int) -> int:
        """Warps of a program that has so many values."""
        return min(max(block // (32 * self.values), 1), self.most_warps)


@dataclass(frozen=True, slots=True)
class ProductConfig:
    """Launch of a product: a tile of the result and how far it steps. Sizes are powers of two."""

    rows: int
    columns: int
    inner: int
    num_warps: int
    num_stages: int


PLAIN_CANDIDATES = {
    "two-pages": PrefillConfig(128, 8, 2, block_keys=2 * PAGE),
    "specialised": PrefillConfig(128, 4, 3, specialised=True),
}
"""Launches of the plain prefill at 128 dimensions on an H100 or H200 that are compiled and right
but of which only a measurement can say whether they are faster than the table's."""


PREFILL_FORMS = ("plain", "masses", "values", "scores", "per_head")
"""By the file that has the kernel, prefill_plain.py and so on; that of values has scores too."""

KERNELS = ("decode", "prefill", "split", "small", "product", "invariant")
"""What a chip's table has entries for."""

SHARED = {"decode": ("num_warps", "split", "max_splits", "block_keys")}
"""Fields on which plain and edited entries for heads of one size, grouped or not, agree: they
decide the order of sums, and a plain sequence is to get the same bits from both forms. A plain row
of a prefill takes the plain form whatever is edited beside it, so there nothing is shared."""


DEFAULT = "default"
"""The table that has every entry; no chip is called so."""

FALLBACK = "otherwise"
"""Field of a table: the one that is asked for what it has no entry for."""


def decode_config(head_dim: int, group: int, edited: bool, dtype: torch.dtype) -> DecodeConfig:
    """Configuration of the plain or the edited decode, for ``group`` query heads a key head."""
    key = {"head_dim": head_dim, "grouped": group > 1, "edited": edited, "bytes": dtype.itemsize}
    return DecodeConfig(**_find("decode", key))


def prefill_config(head_dim: int, form: str, dtype: torch.dtype) -> PrefillConfig:
    """Configuration of one form of the prefill, one of :data:`PREFILL_FORMS`."""
    key = {"head_dim": head_dim, "form": form, "bytes": dtype.itemsize}
    return PrefillConfig(**_find("prefill", key))


def split_config(head_dim: int, dtype: torch.dtype) -> SplitConfig:
    """Configuration of the prefill of question rows, and which rows these are."""
    return SplitConfig(**_find("split", {"head_dim": head_dim, "bytes": dtype.itemsize}))


def small_config(kernel: str, dtype: torch.dtype) -> SmallConfig:
    """Configuration of the kernels of norms ("norm"), heads ("rope") or gates ("gate")."""
    return SmallConfig(**_find("small", {"kernel": kernel, "bytes": dtype.itemsize}))


def product_config(columns: int, inner: int, rows: int, dtype: torch.dtype) -> ProductConfig | None:
    """Configuration of a product of few rows with weights [columns, inner].

    None: the library multiplies, for want of an entry or as one without a configuration says. An
    entry's "rows" are the most that it serves; of several the smallest that is enough.
    """
    return _product(chip(), columns, inner, rows, dtype.itemsize)


@cache
def _product(name: str, columns: int, inner: int, rows: int, size: int) -> ProductConfig | None:
    for known in order(name):
        entries = table().get(known, {}).get("product", ())
        fitting = {
            entry["key"]["rows"]: entry["config"]
            for entry in entries
            if entry["key"] | {"rows": 0} == {"out": columns, "in": inner, "rows": 0, "bytes": size}
            and entry["key"]["rows"] >= rows
        }
        if fitting:
            found = fitting[min(fitting)]
            return None if found is None else ProductConfig(**found)
    return None


WIDE = 8192
"""Rows of weights from which tiles of 64 are more than a GPU's multiprocessors."""


def invariant_config(columns: int, dtype: torch.dtype) -> ProductConfig:
    """Configuration of a product for any number of rows; it depends on nothing of them."""
    key = {"wide": columns >= WIDE, "bytes": dtype.itemsize}
    return ProductConfig(**_find("invariant", key))


def chip() -> str:
    """The first table that is asked: that of the card that runs, or of its capability.

    Cards of one family differ in memory and clocks (an H100 of 80 or 96 GB), not in what fits them.
    Without a GPU it is that of the assumed capability.
    """
    return _chosen[-1] if _chosen else _present()


@contextmanager
def on(name: str) -> Iterator[None]:
    """Configurations and facts of another chip, for what is compiled or told without it."""
    _chosen.append(name)
    try:
        with device.on(capability_of(name)):
            yield
    finally:
        _chosen.pop()


_chosen: list[str] = []


@cache
def _present() -> str:
    card = family(torch.cuda.get_device_name()) if torch.cuda.is_available() else DEFAULT
    return card if card in table() and card != DEFAULT else named(device.running().capability)


def family(card: str) -> str:
    """Of a card's name, such as "NVIDIA H100 80GB HBM3": its model in small letters."""
    return next((w for w in card.lower().replace("-", " ").split() if w != "nvidia"), DEFAULT)


def named(capability: int) -> str:
    """A capability as tables are called: 86 is "sm_86"."""
    return f"sm_{capability}"


def capability_of(chip: str) -> int:
    """Of a card that has a table, of a capability's name, or of the default."""
    for name in order(chip):
        if name.startswith("sm_"):
            return int(name.removeprefix("sm_"))
    return device.ASSUMED


def order(chip: str) -> tuple[str, ...]:
    """Tables that are asked for a chip, one after another. A capability may have none."""
    found = [chip]
    while found[-1] != DEFAULT:
        found.append(table().get(found[-1], {}).get(FALLBACK, DEFAULT))
    return tuple(found)


def cards(capability: int) -> list[str]:
    """Those of a capability that have a table of their own."""
    named_cards = (name for name in chips() if name != DEFAULT and not name.startswith("sm_"))
    return [card for card in named_cards if capability_of(card) == capability]


def chips() -> tuple[str, ...]:
    """Every table there is, the default first."""
    return (DEFAULT, *sorted(name for name in table() if name != DEFAULT))


def check_heads(head_dim: int, dtype: torch.dtype) -> None:
    """Refuse heads that no kernel of the GPU that runs is compiled for, before anything is loaded.

    Raises:
        UnsupportedDeviceError: the table has no entry, or the capability is not known.
    """
    asked = [table().get(name, {}) for name in order(chip())]
    sizes: set[int] = set()
    for kernel in ("decode", "prefill"):
        keys = [entry["key"] for one in asked for entry in one.get(kernel, ())]
        known = {key["head_dim"] for key in keys if key["bytes"] == dtype.itemsize}
        sizes = known if kernel == "decode" else sizes & known
    if not {head_dim, _padded(head_dim)} & sizes:
        facts, name = device.running(), str(dtype).removeprefix("torch.")
        limit = f"heads of up to {max(sizes)} have" if sizes else "those of other types may have"
        raise device.UnsupportedDeviceError(
            f"heads of {head_dim} dimensions in {name} have no kernel for a GPU of compute "
            f"capability {facts.capability // 10}.{facts.capability % 10}; {limit}"
        )


def _padded(head_dim: int) -> int:
    """Kernels work on powers of two, and few other sizes need an entry of their own."""
    return max(64, 1 << (head_dim - 1).bit_length())


def _find(kernel: str, key: dict[str, Any]) -> dict[str, Any]:
    return _entry(chip(), kernel, tuple(key.items()))


@cache  # every launch outside a graph asks
def _entry(name: str, kernel: str, key: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """The first entry for this size or its padded one, in the order of the tables."""
    wanted = [dict(key)]
    if "head_dim" in wanted[0]:
        wanted.append(wanted[0] | {"head_dim": _padded(wanted[0]["head_dim"])})
    for known, one in itertools.product(order(name), wanted):
        for entry in table().get(known, {}).get(kernel, ()):
            if entry["key"] == one:
                found: dict[str, Any] = entry["config"]
                return found
    raise ValueError(f"tuning.json has no {kernel} configuration for {wanted[0]}")


@cache
def table() -> dict[str, Any]:
    """The whole file: by chip where and with what it was measured, what is asked otherwise, and
    entries by kernel.
    """
    text = resources.files(__package__).joinpath("tuning.json").read_text()
    found: dict[str, Any] = json.loads(text)
    return found
