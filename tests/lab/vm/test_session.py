from __future__ import annotations

from lab.system.pace import SLOWNESS_VARIABLE
from lab.vm.session import environment


def test_the_guest_gets_what_concerns_the_command_and_not_this_machine() -> None:
    own = {"PATH": "/bin", "HOME": "/home/me", "RELOADLAB_CLANG": "clang-16", "RELOADLAB_RUN": "/run/mine", "X": "1"}
    kept = {"PATH": "/bin", "HOME": "/root", "LANG": "C.UTF-8", "RELOADLAB_CLANG": "clang-16"}
    assert environment(own, emulated=False) == environment(own, emulated=True) == kept


def test_how_slow_this_machine_is_says_nothing_of_an_emulated_one() -> None:
    """That measures itself; with KVM the processor is the same."""
    own = {SLOWNESS_VARIABLE: "1"}
    assert SLOWNESS_VARIABLE not in environment(own, emulated=True)
    assert environment(own, emulated=False)[SLOWNESS_VARIABLE] == "1"
