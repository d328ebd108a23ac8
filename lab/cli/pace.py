"""How slow this machine is, found and told by every command that sends traffic and waits for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lab.system.pace import calibrate

if TYPE_CHECKING:
    from rich.console import Console


def find_pace(console: Console) -> None:
    """Find the factor of this machine for this process and those that it starts, and print it if it is a slow one."""
    slow = calibrate()
    if slow > 1:
        console.print(f"  slow machine: packets are sent {slow:g} times slower, and waited for {slow:g} times longer")
