"""The lab by hand: ``python -m tests.lab [shell|keep] [--masquerade]`` (root).

`shell` opens a shell in the client's namespace, the lab ends with it; `keep` holds the lab up until Ctrl-C.
"""

import argparse
import os
import signal
import subprocess
import sys
from types import FrameType

from tests.lab.lab import Lab
from tests.lab.namespace import CommandFailed


def main() -> int:
    """Bring a lab up for a person; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description="client, router and server in namespaces")
    parser.add_argument("what", nargs="?", default="shell", choices=["shell", "keep", "sweep"])
    parser.add_argument("--masquerade", action="store_true", help="the router replaces the client's addresses")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root")
    if options.what == "sweep":
        print("\n".join(Lab.sweep()) or "nothing left over")
        return 0
    signal.signal(signal.SIGTERM, _leave)
    try:
        with Lab(masquerade=options.masquerade) as lab:
            print(_welcome(lab), flush=True)
            if options.what == "keep":
                signal.pause()
            shell = lab.client.popen([os.environ.get("SHELL", "/bin/sh")], env={"PS1": "client# "})
            return _wait(shell)
    except KeyboardInterrupt:
        return 0
    except CommandFailed as error:
        print(error, file=sys.stderr)
        return 1


def _welcome(lab: Lab) -> str:
    names = "  ".join(lab.sites)
    return (
        f"lab {lab.name}, files in {lab.dir}\n"
        f"  ip netns exec {lab.name}-client|-router|-server COMMAND\n"
        f"  curl --cacert {lab.root_ca_path} https://site-a.test/whoami\n"
        f"  also below https://site-a.test/: shared/big slow/big shared/repo.git upload/NAME (PUT)\n"
        f"  sites: {names}"
    )


def _wait(shell: subprocess.Popen[bytes]) -> int:
    while True:
        try:
            return shell.wait()
        except KeyboardInterrupt:
            continue  # Ctrl-C was meant for what runs in the shell


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
