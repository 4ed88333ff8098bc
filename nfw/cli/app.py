"""The command group, and what surrounds every command: suggestions, interrupts, broken pipes, errors."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import NoReturn

import click

from nfw import __version__

# name -> (module, attribute, line in --help). Help needs no import of the module.
COMMANDS = {
    "run": ("nfw.cli.daemon", "run", "Run the firewall in the foreground."),
    "policy": ("nfw.cli.policy", "policy", "Check, test, compare, apply, take back or convert policies."),
    "status": ("nfw.cli.daemon", "status", "Show what the running firewall does."),
    "top": ("nfw.cli.top", "top", "Watch the running firewall live."),
    "flows": ("nfw.cli.flows", "flows", "List, capture or flush the flows of the running firewall."),
    "logs": ("nfw.cli.logs", "logs", "Show the event log as lines for a person."),
    "doctor": ("nfw.cli.doctor", "doctor", "Check this machine, and say how to mend what is wrong."),
    "rules": ("nfw.cli.rules", "rules", "Check rule files, list keywords, show which rules were hit."),
    "explain": ("nfw.cli.explain", "explain", "Say what a policy does with a flow, and why."),
    "replay": ("nfw.cli.replay", "replay", "Run rules, or a policy, over a capture."),
    "tls": ("nfw.cli.tls", "tls", "Show which names TLS inspection does not suit."),
    "ca": ("nfw.cli.ca", "ca", "Create, import, rotate, export or show the CA that TLS inspection signs with."),
    "cleanup": ("nfw.cli.daemon", "cleanup", "Remove everything nfw has set in the kernel."),
    "completion": ("nfw.cli.completion", "completion", "Print the completion script of a shell."),
}


json_asked = ContextVar("json_asked", default=False)  # the command was asked for JSON: so is a failure told


class Failure(Exception):  # noqa: N818 - what a command reports, not a fault of the program
    """The thing asked for failed: every line goes to standard error, exit code 1."""

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)
        self.lines = lines


class NearestGroup(click.Group):
    """A group that answers an unknown subcommand with the nearest known one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if any(error.option_name in each.opts for each in _options_within(self, ctx)):
                place = f"{ctx.command_path} COMMAND {error.option_name}"
                raise click.UsageError(f"{error.option_name} goes behind the command: {place}", ctx) from None
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The whole first sentence of each, where click cuts it."""
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            assert command is not None
            rows.append((name, command.get_short_help_str(limit=1000)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = click.utils.make_str(args[0])
        if args and self.get_command(ctx, name) is None and not name.startswith("-"):
            known = self.list_commands(ctx)
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(known)}"
            if name in ("help", "version"):
                hint = f'expected "{ctx.command_path if name == "help" else "nfw"} --{name}"'
            raise click.UsageError(f'no such command "{name}"; {hint}', ctx)
        return super().resolve_command(ctx, args)


def _options_within(group: click.Group, ctx: click.Context) -> Iterator[click.Parameter]:
    """Of every command below ``group``."""
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if isinstance(command, click.Group):
            yield from _options_within(command, ctx)
        elif command is not None:
            yield from command.params


class LazyGroup(NearestGroup):
    """The top group: a subcommand's module is imported when the subcommand is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = COMMANDS.get(cmd_name)
        if found is None:
            return None
        module, attribute, _ = found
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, _, summary) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Exit codes: 0 done, 1 failed or the policy is wrong, 2 wrong usage, 130 interrupted.",
)
@click.version_option(__version__, prog_name="nfw", message="%(prog)s %(version)s")
def cli() -> None:
    """An inline firewall for Linux routers that can see inside TLS."""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    sys.exit(call(args))


def call(args: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. No user error ends in a traceback."""
    from nfw.control import ControlError  # msgpack only: cheap

    json_asked.set(False)
    if sys.stdout is None:  # closed by who started us (>&-): what is not asked for is not an error
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    _encoding()
    try:
        result = cli.main(args=list(args) if args is not None else None, prog_name="nfw", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        if _wants_json(sys.argv[1:] if args is None else args):
            return _failed(error.format_message(), code=2)
        if error.ctx is not None and not error.message.strip().startswith("Usage:"):
            _usage(error)
        elif error.message.strip().startswith("Usage:"):  # a group without a subcommand: the message is its help
            tell(error.message)
        else:  # click leaves the command out where an option lacks its value
            tell(f"nfw: {error.format_message()}")
        return 2
    except click.ClickException as error:
        return _failed(error.format_message(), code=error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return 130
    except Failure as failure:
        return _failed(*failure.lines)
    except ControlError as error:
        advice = _advice(error)
        return _failed(f"nfw: {error}", *([f"nfw: {advice}"] if advice else []))
    except BrokenPipeError:
        # The reader left (`nfw status | head -1`). Python would complain once more when it flushes at exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _failed(f"nfw: {where}{error.strerror or error}")
    return result if isinstance(result, int) else 0


def _encoding() -> None:
    """No character that the locale has no place for ends a command: to a file or a pipe goes UTF-8 as ever, on a
    terminal such a character is an escape."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        encoding = None if sys.stdout.isatty() else "utf-8"
        sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")


def _failed(*lines: str, code: int = 1) -> int:
    if json_asked.get():
        with contextlib.suppress(OSError):
            emit_json({"ok": False, "errors": list(lines)})
            sys.stdout.flush()
        return code
    for line in lines:
        tell(line)
    return code


def _wants_json(args: Sequence[str]) -> bool:
    """Whether JSON was asked for on a command line that may be wrong before the place where that is said."""
    json_asked.set("--json" in (args[: args.index("--")] if "--" in args else args))
    return json_asked.get()


def _advice(error: Exception) -> str:
    """What to do where the daemon did not answer."""
    from nfw.control import ControlTimeoutError, DeniedError, NotRunningError

    if isinstance(error, NotRunningError):
        return "`systemctl start nfw` starts it, `journalctl -u nfw` says why it ended; --control names another socket"
    if isinstance(error, DeniedError):
        return "run the command as root (sudo)"
    if isinstance(error, ControlTimeoutError):
        return "it is busy or hangs (`journalctl -u nfw`), and may still do what it was asked; --timeout waits longer"
    return ""


def colourful() -> bool:
    """Whether what a person reads on standard output may have colours (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def tell(text: str) -> None:
    """A line for a person, on standard error."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def emit(text: str) -> None:
    """Data, on standard output."""
    print(text)


def emit_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))


def _usage(error: click.UsageError) -> None:
    assert error.ctx is not None
    tell(error.ctx.get_usage())
    tell(f"nfw: {error.format_message()}")
    tell(f'Try "{error.ctx.command_path} --help".')
