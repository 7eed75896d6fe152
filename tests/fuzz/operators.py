"""What operators say to a node, and what it answers."""

from collections.abc import Callable, Hashable, Iterable
from typing import Any, get_args

from fuzz.engine import Violation
from fuzz.examples import example
from qkdnode.wire import control

_REQUESTS: tuple[Any, ...] = get_args(control.AnyRequest)


def _seeds(union: Any, encode: Callable[[Any], bytes]) -> list[bytes]:
    """Each message of a union at its least and ample."""
    kinds = get_args(union) or (union,)
    return [encode(example(kind, ample=ample)) for kind in kinds for ample in (False, True)]


def _framed(message: Any) -> bytes:
    return control.frame(message)[control.LENGTH.size :]


def signed_seeds() -> list[bytes]:
    return _seeds(control.Signed, _framed)


def from_agent_seeds() -> list[bytes]:
    return _seeds(control.FromAgent, _framed)


def request_seeds() -> list[bytes]:
    return _seeds(control.AnyRequest, control.encode_request)


def answer_seeds() -> list[bytes]:
    """A byte that says to which request, and the answer."""
    return [
        bytes([number]) + seed
        for number, request in enumerate(_REQUESTS)
        for seed in _seeds(control.ANSWERS[request], control.encode_answer)
    ]


def _same(message: Any, again: Any) -> Iterable[Hashable]:
    if message != again:
        raise Violation(f"{type(message).__name__} is another one once it was encoded and decoded")
    return (type(message),)


def take_signed(data: bytes) -> Iterable[Hashable]:
    message = control.decode_signed(data)
    return _same(message, control.decode_signed(_framed(message)))


def take_from_agent(data: bytes) -> Iterable[Hashable]:
    message = control.decode_from_agent(data)
    return _same(message, control.decode_from_agent(_framed(message)))


def take_request(data: bytes) -> Iterable[Hashable]:
    message = control.decode_request(data)
    return _same(message, control.decode_request(control.encode_request(message)))


def take_answer(data: bytes) -> Iterable[Hashable]:
    request = example(_REQUESTS[(data[0] if data else 0) % len(_REQUESTS)], ample=False)
    message = control.decode_answer(request, data[1:])
    return _same(message, control.decode_answer(request, control.encode_answer(message)))
