"""The configuration of a kernel in docs/kernels.md has all options that the lab's own messages name."""

from __future__ import annotations

import re
from pathlib import Path

from lab.vm.initramfs import NEEDED

ROOT = Path(__file__).resolve().parents[1]
KVM_GUEST = {"9P_FS", "NET_9P_VIRTIO", "VIRTIO_PCI"}
"""Of kernel/configs/kvm_guest.config, as far as we name them."""

SELECTED = {"NET_XGRESS"}
"""What others bring along, NET_SCH_INGRESS this one."""

SOURCES = ("lab/doctor/doctor.py", "lab/node/masquerade.py", "lab/watch/tracing.py", "lab/vm/guest.py")


def test_every_option_that_a_message_names_is_in_the_configuration() -> None:
    (words,) = re.findall(r"for option in (.*?)\bdo echo", (ROOT / "docs" / "kernels.md").read_text(), re.DOTALL)
    listed = words.replace("\\", "").split()
    assert len(listed) == len(set(listed))
    named = {name for path in SOURCES for name in re.findall(r"CONFIG_(\w+)", (ROOT / path).read_text())}
    assert {"VETH", "FTRACE_SYSCALLS", "NFT_MASQ", "DEBUG_FS"} <= named
    needed = {option.removeprefix("CONFIG_") for option in NEEDED.values()}
    assert (named | needed) - SELECTED - KVM_GUEST <= set(listed)
