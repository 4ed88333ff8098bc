"""``nfw completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from nfw.cli.app import cli, emit

_WHERE = {
    "bash": "nfw completion bash > /etc/bash_completion.d/nfw",
    "zsh": 'nfw completion zsh > "${fpath[1]}/_nfw"',
    "fish": "nfw completion fish > ~/.config/fish/completions/nfw.fish",
}


@click.command(epilog="For example: " + _WHERE["bash"])
@click.argument("shell", type=click.Choice(list(_WHERE)))
def completion(shell: str) -> None:
    """Print the completion script of a shell."""
    found = get_completion_class(shell)
    assert found is not None
    script = found(cli, {}, "nfw", "_NFW_COMPLETE")
    # Not .source(): it starts a bash to look at its version, and prints that check's result to standard output.
    emit(script.source_template % script.source_vars())
