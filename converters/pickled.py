"""Plain values out of a pickle, without unpickling it: the file is read as a list of instructions, of which none is carried out.

Texts, numbers, lists, tuples and dictionaries are put together here. Everything else a pickle can ask for (an import, a call, an object)
becomes `OPAQUE`. Containers that are used a second time become `OPAQUE` too, so that a small file cannot stand for an endless value.
"""

from __future__ import annotations

import pickletools
from typing import Any, Final

OPAQUE: Final = object()

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_EMPTY = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# What makes an object, and how many values it takes for that.
_OBJECTS = {
    "GLOBAL": 0, "EXT1": 0, "EXT2": 0, "EXT4": 0, "PERSID": 0, "EMPTY_SET": 0, "BYTEARRAY8": 0, "NEXT_BUFFER": 0, "BINPERSID": 1,
    "READONLY_BUFFER": 1, "STACK_GLOBAL": 2, "REDUCE": 2, "NEWOBJ": 2, "BUILD": 2, "NEWOBJ_EX": 3,
}  # fmt: skip
_OBJECTS_OF_MARK = {"INST", "OBJ", "FROZENSET"}


def plain(data: bytes) -> Any:
    """The value that a pickle holds, as far as it is plain.

    Raises:
        ValueError: damaged, or no pickle.
    """
    stack: list[Any] = []
    marks: list[int] = []  # where on the stack they lie
    memo: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        return take(len(stack) - marks.pop())

    def take(count: int) -> list[Any]:
        place = len(stack) - count
        if place < (marks[-1] if marks else 0):
            raise ValueError("an instruction of the pickle lacks what it works on")
        values = stack[place:]
        del stack[place:]
        return values

    try:
        for opcode, argument, _ in pickletools.genops(data):
            name = opcode.name
            if name in _LITERALS:
                stack.append(argument)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name in _EMPTY:
                stack.append(_EMPTY[name]())
            elif name in _TUPLES:
                stack.append(tuple(take(_TUPLES[name])))
            elif name in _OBJECTS:
                take(_OBJECTS[name])
                stack.append(OPAQUE)
            elif name in _OBJECTS_OF_MARK:
                since_mark()
                stack.append(OPAQUE)
            elif name == "MARK":
                marks.append(len(stack))
            elif name in ("TUPLE", "LIST"):
                stack.append(tuple(since_mark()) if name == "TUPLE" else since_mark())
            elif name in ("APPEND", "APPENDS", "ADDITEMS"):
                values = since_mark() if name != "APPEND" else take(1)
                if isinstance(stack[-1], list):
                    stack[-1].extend(values)
            elif name in ("DICT", "SETITEM", "SETITEMS"):
                values = take(2) if name == "SETITEM" else since_mark()
                if name == "DICT":
                    stack.append({})
                if isinstance(stack[-1], dict):
                    stack[-1].update(
                        {k: v for k, v in zip(values[::2], values[1::2], strict=True) if isinstance(k, (str, int, float, bytes))}
                    )
            elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                value = stack[-1]
                memo[len(memo) if name == "MEMOIZE" else argument] = OPAQUE if isinstance(value, (list, tuple, dict)) else value
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name == "POP":
                stack.pop()
            elif name == "POP_MARK":
                since_mark()
            elif name == "DUP":
                stack.append(OPAQUE)
            elif name == "STOP":
                return take(1)[0]
    except (IndexError, KeyError, RecursionError, OverflowError) as error:
        raise ValueError(f"the pickle is damaged ({type(error).__name__})") from error
    raise ValueError("the pickle has no end")
