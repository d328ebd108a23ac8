"""The command `reloadlab`, and `python -m reloadlab`."""

from __future__ import annotations

import sys

from reloadlab.home import enter


def main() -> int:
    """Run the command line with our own packages, whatever lies in the current directory or in PYTHONPATH."""
    try:
        enter(first=True)
        from lab.cli.main import main as command
    except KeyboardInterrupt:
        # What says so of a command is not there yet.
        print("reloadlab: interrupted", file=sys.stderr)
        return 130
    return command()


if __name__ == "__main__":
    sys.exit(main())
