from __future__ import annotations

from lab.vm.session import environment


def test_the_guest_gets_what_concerns_the_command_and_not_this_machine() -> None:
    own = {"PATH": "/bin", "HOME": "/home/me", "RELOADLAB_CLANG": "clang-16", "RELOADLAB_RUN": "/run/mine", "X": "1"}
    assert environment(own) == {"PATH": "/bin", "HOME": "/root", "LANG": "C.UTF-8", "RELOADLAB_CLANG": "clang-16"}
