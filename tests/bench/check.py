"""Run `nfw policy check` on a policy; print its exit status and the process's peak memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nfw.cli.app import call


def main() -> None:
    status = call(["policy", "check", sys.argv[1], "--json"])
    # Of this program alone: what getrusage() says includes the process it was forked from.
    memory = Path("/proc/self/status").read_text()
    peak = next(line.split()[1] for line in memory.splitlines() if line.startswith("VmHWM:"))
    print(json.dumps({"status": status, "peak": int(peak) * 1024}), flush=True)


if __name__ == "__main__":
    main()
