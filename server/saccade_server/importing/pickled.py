"""What a pickle of tensors says, found without unpickling it.

The opcodes are read by :mod:`pickletools`, which runs nothing, and followed on a stack of plain
values. Nothing is looked up and nothing is called: of all names in the world a pickle may use those
by which torch and NumPy say "a tensor" and "an array", and each becomes a note of what is meant.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from saccade_interventions.errors import brief
from saccade_server.importing.found import MOST_BYTES, ImportRefused

MOST_OPCODES = 200_000
ORDERS = ("<", "|", "=")
Stack = list[Any]


@dataclass(frozen=True)
class Name:
    """Something that a pickle would import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Storage:
    """Numbers in a file of the archive: torch's name of their type, the file's, how many."""

    kind: str
    key: str
    count: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass
class Array:
    """A NumPy array; what it holds comes with its state."""

    dtype: str = ""
    shape: tuple[int, ...] = ()
    data: bytes = b""
    columns_first: bool = False


@dataclass
class Type:
    """A NumPy type, as ``f4``, and its byte order."""

    code: str
    order: str = "="


@dataclass
class _Mark:
    below: Stack = field(default_factory=list)


def read_pickle(data: bytes) -> Any:
    """The value that a pickle stands for: numbers, texts, lists, dicts, tensors and arrays.

    Raises:
        ImportRefused: it is no pickle, or would import anything else.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > MOST_OPCODES:
                raise ImportRefused("the pickle is longer than that of vectors")
            if opcode.name == "STOP":
                return machine.pop()
            machine.do(opcode.name, argument)
    except ImportRefused:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError):
        pass  # not one of the forms that torch and NumPy write
    raise ImportRefused("its pickle cannot be followed")


class _Machine:
    def __init__(self) -> None:
        self._stack: Stack = []
        self._marks: list[Stack] = []
        self._memo: dict[int, Any] = {}
        self._encoded = 0  # bytes made of texts, which a pickle may name again and again

    def pop(self) -> Any:
        return self._stack.pop()

    def do(self, name: str, argument: Any) -> None:
        if name in PLAIN:
            self._stack.append(argument)
        elif name in CONSTANTS:
            self._stack.append(CONSTANTS[name]())
        elif name in ("PROTO", "FRAME"):
            pass
        elif (act := getattr(self, f"_do_{name.lower()}", None)) is not None:
            act(argument)
        else:
            raise ImportRefused(f"its pickle has the opcode {name}, which no tensor needs")

    def _marked(self) -> Stack:
        items = self._stack
        self._stack = self._marks.pop()
        return items

    def _do_mark(self, _: Any) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _do_tuple(self, _: Any) -> None:
        items = tuple(self._marked())
        self._stack.append(items)

    def _do_tuple1(self, _: Any) -> None:
        self._group(1)

    def _do_tuple2(self, _: Any) -> None:
        self._group(2)

    def _do_tuple3(self, _: Any) -> None:
        self._group(3)

    def _group(self, count: int) -> None:
        items = tuple(self._stack[-count:])
        if len(items) != count:
            raise IndexError
        self._stack[-count:] = [items]

    def _do_append(self, _: Any) -> None:
        item = self._stack.pop()
        _list(self._stack[-1]).append(item)

    def _do_appends(self, _: Any) -> None:
        items = self._marked()
        _list(self._stack[-1]).extend(items)

    def _do_setitem(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        _set(self._stack[-1], [key, value])

    def _do_setitems(self, _: Any) -> None:
        items = self._marked()
        _set(self._stack[-1], items)

    def _do_binput(self, argument: int) -> None:
        self._memo[argument] = self._stack[-1]

    _do_long_binput = _do_binput

    def _do_memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _do_binget(self, argument: int) -> None:
        self._stack.append(self._memo[argument])

    _do_long_binget = _do_binget

    def _do_global(self, argument: str) -> None:
        self._stack.append(_known(Name(*argument.split(" ", 1))))

    def _do_stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        # Of tuples within tuples, named again and again, the text alone would fill the memory.
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError
        self._stack.append(_known(Name(module, name)))

    def _do_binpersid(self, _: Any) -> None:
        what, kind, key, _location, count = self._stack.pop()
        if what != "storage" or not isinstance(kind, Name) or not isinstance(key, str):
            raise ValueError
        self._stack.append(Storage(kind.name, key, _whole(count)))

    def _do_reduce(self, _: Any) -> None:
        arguments, name = self._stack.pop(), self._stack.pop()
        if not isinstance(name, Name) or not isinstance(arguments, tuple):
            raise ValueError
        if (make := MADE.get(str(name))) is None:
            raise ImportRefused(f"its pickle calls {brief(str(name))}, which makes no tensor")
        made = make(*arguments)
        if isinstance(made, bytes):
            self._encoded += len(made)
            if self._encoded > MOST_BYTES:
                raise ImportRefused("its pickle makes more of the file than there is in it")
        self._stack.append(made)

    def _do_build(self, _: Any) -> None:
        state, thing = self._stack.pop(), self._stack[-1]
        if isinstance(thing, Type):
            order = state[1]
            if not isinstance(order, str) or order not in ORDERS:
                raise ValueError
            thing.order = order
        elif isinstance(thing, Array):
            _, shape, dtype, columns_first, data = state
            if not isinstance(data, bytes) or not isinstance(dtype, Type):
                raise ValueError
            thing.shape, thing.data = _wholes(shape), data
            thing.dtype, thing.columns_first = dtype.code, bool(columns_first)
        elif not isinstance(thing, dict):  # a dict's state is torch's own notes on it
            raise ValueError


def _list(thing: Any) -> list[Any]:
    if not isinstance(thing, list):
        raise TypeError
    return thing


def _set(thing: Any, items: Stack) -> None:
    if not isinstance(thing, dict) or len(items) % 2:
        raise TypeError
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, int | str):
            raise TypeError
        thing[key] = value


def _known(name: Name) -> Name:
    """A name that is only noted, if it belongs to tensors at all."""
    storage = name.module == "torch" and name.name.endswith("Storage")
    if not storage and str(name) not in {*MADE, "numpy.ndarray"}:
        raise ImportRefused(f"its pickle would import {brief(str(name))}, which is no tensor")
    return name


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**48:
        raise ValueError
    return value


def _wholes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > 8:
        raise ValueError
    return tuple(map(_whole, values))


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise TypeError
    return Tensor(storage, _whole(offset), _wholes(size), _wholes(stride))


def _parameter(tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError
    return tensor


def _dict(*arguments: Any) -> dict[Any, Any]:
    if arguments:
        raise ValueError
    return {}


def _type(code: Any, *_: Any) -> Type:
    if not isinstance(code, str):
        raise TypeError
    return Type(code)


def _encoded(text: Any, encoding: Any) -> bytes:
    """Bytes, as old protocols write them."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError
    return text.encode("latin1")


def _array(*_: Any) -> Array:
    return Array()


MADE: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "collections.OrderedDict": _dict,
    "numpy.dtype": _type,
    "numpy.core.multiarray._reconstruct": _array,
    "numpy._core.multiarray._reconstruct": _array,
    "_codecs.encode": _encoded,
}
"""What a pickle may call, and our own note of what would come of it."""

PLAIN = frozenset(
    {
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    }
)
"""Opcodes that carry their value."""
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
