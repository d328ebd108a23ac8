"""`reloadlab completion`: the script that lets a shell complete commands, options, labs and endpoints."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

SHELLS = ("bash", "zsh", "fish")
PROGRAM = "reloadlab"

HOW = {
    "bash": 'eval "$(reloadlab completion bash)" in ~/.bashrc',
    "zsh": 'eval "$(reloadlab completion zsh)" in ~/.zshrc, after compinit',
    "fish": "reloadlab completion fish | source in ~/.config/fish/config.fish",
}


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "completion",
        description="Print the script that lets a shell complete commands, options, labs and endpoints. To load it: "
        f"{'; '.join(HOW.values())}. Labs are completed only for root, who alone can read them.",
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    from argcomplete.shell_integration import shellcode

    print(shellcode([PROGRAM], shell=args.shell))
    return 0
