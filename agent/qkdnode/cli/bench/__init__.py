"""`qkdnode bench`: measure the kernels of this machine, one JSON object per run."""

import importlib
import json
from collections.abc import Callable
from typing import Any

import click

BENCHES = {
    "reconcile": "Cascade: both roles on one core, message packing included.",
    "amplify": "Privacy amplification, a fresh seed per iteration.",
    "emulation": "The emulated modules: slots per second out of the bulk endpoint.",
}


@click.group(name="bench", invoke_without_command=True)
@click.option("--list", "list_them", is_flag=True, help="List the benchmarks.")
@click.pass_context
def command(context: click.Context, list_them: bool) -> None:
    """Measure the kernels of this machine."""
    if list_them or context.invoked_subcommand is None:
        for name, text in BENCHES.items():
            click.echo(f"{name:12} {text}")


def _bench(name: str) -> Callable[..., dict[str, object]]:
    function: Callable[..., dict[str, object]] = getattr(importlib.import_module(f"qkdnode.cli.bench.{name}"), name)
    return function


def _report(result: dict[str, object], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(result))
        return
    for key, value in result.items():
        click.echo(f"{key:22} {value:.4g}" if isinstance(value, float) else f"{key:22} {value}")


def _run(name: str, as_json: bool, **options: Any) -> None:
    try:
        result = _bench(name)(**options)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    _report(result, as_json)


seconds_option = click.option("--seconds", default=3.0, show_default=True, help="CPU time to measure for.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@command.command(help=BENCHES["reconcile"])
@click.option("--method", default="cascade", show_default=True)
@click.option("--qber", default=0.02, show_default=True)
@click.option("--frame-bits", default=16384, show_default=True)
@click.option("--profile", default="lan", show_default=True)
@seconds_option
@json_option
def reconcile(method: str, qber: float, frame_bits: int, profile: str, seconds: float, as_json: bool) -> None:
    _run("reconcile", as_json, method=method, qber=qber, frame_bits=frame_bits, profile=profile, seconds=seconds)


@command.command(help=BENCHES["amplify"])
@click.option("--bits", default=1 << 20, show_default=True, help="Input bits.")
@click.option("--ratio", default=0.5, show_default=True, help="Output over input.")
@click.option("--family", default="modified", show_default=True)
@seconds_option
@json_option
def amplify(bits: int, ratio: float, family: str, seconds: float, as_json: bool) -> None:
    _run("amplify", as_json, bits=bits, ratio=ratio, family=family, seconds=seconds)


@command.command(help=BENCHES["emulation"])
@click.option("--personality", default="tx", show_default=True, help="tx or rx.")
@seconds_option
@json_option
def emulation(personality: str, seconds: float, as_json: bool) -> None:
    _run("emulation", as_json, personality=personality, seconds=seconds)
