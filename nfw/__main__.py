"""``python -m nfw`` is the command ``nfw``."""

from nfw.cli import main

if __name__ == "__main__":
    main()
