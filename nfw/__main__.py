"""The command ``nfw``, also as ``python -m nfw``. Ctrl-C while its modules are imported ends it without a word, too."""

from __future__ import annotations

import os
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and exit."""
    try:
        if not {"COMP_WORDS", "COMP_CWORD"} <= os.environ.keys():
            os.environ.pop("_NFW_COMPLETE", None)  # no shell that asks for completion
        from nfw.cli import main as run
    except KeyboardInterrupt:
        os._exit(130)  # nothing has been begun
    run()


if __name__ == "__main__":
    main()
