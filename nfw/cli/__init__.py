"""The command ``nfw``: one function per subcommand, and one place where trouble becomes a line and an exit code.

Exit codes: 0 done, 1 the thing asked for failed or the policy is wrong, 2 the command line is wrong, 130 interrupted.
Data goes to standard output, everything else to standard error. Subcommands live in modules that are imported when
they are asked for, because ``nfw --help`` should not wait for OpenSSL and Hyperscan.
"""

from nfw.cli.app import cli, main

__all__ = ["cli", "main"]
