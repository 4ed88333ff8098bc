"""Options several subcommands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import click

from nfw.cli.app import json_asked
from nfw.settings import DEFAULT_CONTROL

Decorated = Callable[..., Any]


def control_option(function: Decorated) -> Decorated:
    return click.option(
        "--control",
        envvar="NFW_CONTROL",
        default=DEFAULT_CONTROL,
        show_default=True,
        show_envvar=True,
        metavar="PATH",
        help="Control socket.",
    )(function)


def named(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """A callback: an empty name of a file (mostly a shell variable that is not set) would mean this directory."""
    given = value if isinstance(value, tuple) else (value,)
    if "" in given:
        raise click.BadParameter("the name is empty; expected the name of a file", ctx, parameter)
    return value


def policy_options(function: Decorated) -> Decorated:
    """What goes with AWS documents."""
    function = click.option(
        "--name", default="", metavar="NAME", help="Which policy, where AWS documents hold several."
    )(function)
    return click.option(
        "--map",
        "map_file",
        metavar="FILE",
        callback=named,
        help="What AWS documents refer to but do not hold: certificates, IP sets, managed rules.",
    )(function)


def json_option(function: Decorated) -> Decorated:
    return json_option_as("Print JSON.")(function)


def json_option_as(text: str) -> Callable[[Decorated], Decorated]:
    """--json, with what --help says of it."""

    def asked(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
        json_asked.set(value)
        return value

    return click.option("--json", "as_json", is_flag=True, callback=asked, help=text)


class Seconds(click.FloatRange):
    """A duration within bounds, which "nan" is not although it compares with none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return number


ENTRY = click.IntRange(1, 2**31 - 1)  # the number of a policy in the history


def timeout_option(default: float) -> Callable[[Decorated], Decorated]:
    return click.option(
        "--timeout",
        type=Seconds(0.1, 3600),
        default=default,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for the answer.",
    )
