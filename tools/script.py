"""How the scripts of this directory begin and end: a wrong call and a failure are one line, and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from reloadlab import ReloadlabError

BADLY_CALLED, INTERRUPTED = 2, 130


def run(main: Callable[..., int], usage: str | None) -> NoReturn:
    """Call `main` with the script's arguments, of which there is at least one, and exit with what it returns."""
    if len(sys.argv) < 2:
        print(usage, file=sys.stderr)
        sys.exit(BADLY_CALLED)
    try:
        sys.exit(main(*sys.argv[1:]))
    except ReloadlabError as error:
        # Importable once something of reloadlab is.
        from datapath.errors import WrongCall

        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(BADLY_CALLED if isinstance(error, WrongCall) else 1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
