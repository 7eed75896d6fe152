"""Seeds from the types themselves: for every struct of the wire a value at its least and an ample one.

So a new message has seeds from the day it is declared, and none can rot.
"""

from typing import Any

import msgspec
from msgspec import inspect

TEXT = "node-a.link-of-metro.payroll-app"


def example(kind: Any, *, ample: bool) -> Any:
    """A value of a type as msgspec reads it; `ample` is mid-range, with three elements where any number may be."""
    return _build(inspect.type_info(kind), ample)


def _build(info: inspect.Type, ample: bool) -> Any:
    match info:
        case inspect.StructType(cls=cls, fields=fields):
            return cls(**{field.name: _build(field.type, ample) for field in fields})
        case inspect.IntType():
            return _integer(info, ample)
        case inspect.FloatType(ge=ge, gt=gt):
            low = ge if ge is not None else gt if gt is not None else 0.0
            return low + (0.25 if ample or gt is not None else 0.0)
        case inspect.StrType(min_length=low, max_length=high, pattern=pattern):
            if pattern is not None:
                return _matching(pattern, ample)
            return _sized(TEXT, low, high, ample)
        case inspect.BytesType(min_length=low, max_length=high):
            return _sized(bytes(range(1, 255)), low, high, ample)
        case inspect.BoolType():
            return ample
        case inspect.LiteralType(values=values):
            return values[-1 if ample else 0]
        case inspect.VarTupleType(item_type=item, min_length=low, max_length=high):
            count = max(low or 0, min(3, high or 3)) if ample else low or 0
            return tuple(_build(item, ample) for _ in range(count))
        case inspect.ListType(item_type=item, min_length=low):
            return [_build(item, ample) for _ in range(max(low or 0, 3 if ample else 0))]
        case inspect.TupleType(item_types=items):
            return tuple(_build(item, ample) for item in items)
        case inspect.DictType(key_type=name, value_type=value):
            return {_build(name, True): _build(value, ample)} if ample else {}
        case inspect.UnionType(types=types):
            chosen = [each for each in types if not isinstance(each, inspect.NoneType)]
            return _build(chosen[0], ample) if ample or len(chosen) == len(types) else None
        case inspect.EnumType(cls=cls):
            return list(cls)[-1 if ample else 0]
        case inspect.NoneType() | inspect.AnyType():
            return None
    raise TypeError(f"no example of {info!r}: teach examples.py this type")


def _integer(info: inspect.IntType, ample: bool) -> int:
    low = info.ge if info.ge is not None else info.gt + 1 if info.gt is not None else 0
    high = info.le if info.le is not None else info.lt - 1 if info.lt is not None else 2**31
    step = info.multiple_of or 1
    value = min(high, low + (1000 if ample else 0))
    return -(-value // step) * step


def _sized(pattern: Any, low: int | None, high: int | None, ample: bool) -> Any:
    size = max(low or 0, min(12, high if high is not None else 12)) if ample else low or 0
    return (pattern * (size // len(pattern) + 1))[:size]


def _matching(pattern: str, ample: bool) -> str:
    """A text that a pattern takes, out of those that this project's patterns are for."""
    import re

    for text in ("node-a", "a", "key.allocated", "tcp://127.0.0.1:5555", "A" * 40, "A" * 43 + "=", "0" * 32, "done"):
        if re.search(pattern, text):
            return text
    raise TypeError(f"no example for the pattern {pattern!r}: teach examples.py one")


def integers(value: Any) -> list[int]:
    """Every integer in a decoded message."""
    if isinstance(value, bool):
        return []
    if isinstance(value, int):
        return [value]
    if isinstance(value, msgspec.Struct):
        return [found for name in value.__struct_fields__ for found in integers(getattr(value, name))]
    if isinstance(value, dict):
        return [found for part in value.values() for found in integers(part)]
    if isinstance(value, (tuple, list)):
        return [found for part in value for found in integers(part)]
    return []
