"""Load and compile a policy as the leader of a generation does; print its rules and the process's peak memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nfw.generation import load_compiled


def main() -> None:
    compiled = load_compiled(sys.argv[1])
    # Of this program alone: what getrusage() says includes the process it was forked from.
    status = Path("/proc/self/status").read_text()
    peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    print(json.dumps({"rules": len(compiled.ruleset.rules), "peak": int(peak) * 1024}), flush=True)


if __name__ == "__main__":
    main()
