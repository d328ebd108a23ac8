"""The initramfs of a virtual machine: busybox, the modules that reach the host's files, and init.sh."""

from __future__ import annotations

import gzip
import lzma
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from elftools.elf.elffile import ELFFile

from datapath.errors import ReloadlabError, ToolError
from lab.system import tools
from lab.system.scratch import scratch
from lab.vm.fetch import last_words
from lab.vm.kernels import Kernel, NoKernel

SHARE = "/run/reloadlab-vm"
"""Where the guest sees the one directory of the host's that it may write to."""

NEEDED = {
    "virtio_pci": "CONFIG_VIRTIO_PCI",
    "9pnet_virtio": "CONFIG_NET_9P_VIRTIO",
    "9p": "CONFIG_9P_FS",
    "overlay": "CONFIG_OVERLAY_FS",
}
"""Modules (or parts of the image) without which the guest cannot reach the host's files."""

_INIT = Path(__file__).with_name("init.sh")
_INSERTED = re.compile(r"insmod (.+\.ko(?:\.\w+)?)(?: .*)?")
"""A line of `modprobe --show-depends`: the file of a module, and what the machine's settings tell it."""

_FILE, _PROGRAM, _DIRECTORY = 0o100644, 0o100755, 0o040755


class UnfitBusybox(ReloadlabError):
    """A busybox that needs libraries, of which an initramfs has none."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} needs shared libraries: apt-get install busybox-static")


def write(output: Path, kernel: Kernel, command: Sequence[str]) -> None:
    """Write the initramfs that boots `kernel` and ends in `command`, an argument list of the host's own programs."""
    output.write_bytes(assemble(kernel, _INIT, NEEDED, {"share": [SHARE], "command": command}))


def check(kernel: Kernel) -> None:
    """Raise what `write` would: NoKernel, ToolMissing, UnfitBusybox."""
    assemble(kernel, _INIT, NEEDED, {})


def assemble(kernel: Kernel, init: Path, needed: Mapping[str, str], settings: Mapping[str, Sequence[str]]) -> bytes:
    """Return an initramfs of busybox, `init` and the modules `needed`, which init finds in /modules, named in order.

    `settings` are further files there, each with its lines; one of them is always `release`.
    """
    modules = {path.name.partition(".ko")[0] + ".ko": _plain(path) for path in needed_modules(kernel, needed)}
    settings = {"order": list(modules), "release": [kernel.release], **settings}
    return archive(
        {
            "bin/busybox": (_PROGRAM, busybox().read_bytes()),
            "init": (_PROGRAM, init.read_bytes()),
            **{f"modules/{name}": (_FILE, _lines(lines)) for name, lines in settings.items()},
            **{f"modules/{name}": (_FILE, content) for name, content in modules.items()},
        }
    )


def needed_modules(kernel: Kernel, needed: Mapping[str, str] = NEEDED) -> list[Path]:
    """Return the files of the modules that the guest needs first, in the order in which they are loaded.

    `needed` has the option of the kernel's configuration for each. NoKernel if the kernel lacks one, or its index of
    modules is missing.
    """
    base = kernel.modules.parents[2]
    if not (kernel.modules / "modules.dep").is_file():
        raise NoKernel(f"{kernel.modules} has no modules.dep: depmod --basedir {base} {kernel.release}")
    found: dict[Path, None] = {}
    for name, option in needed.items():
        try:
            shown = tools.run(["modprobe", "-d", str(base), "-S", kernel.release, "--show-depends", name])
        except ToolError as error:
            raise NoKernel(f"kernel {kernel.release} has no {name}: it must have {option} (=m or =y)") from error
        found |= {Path(line[1]): None for line in map(_INSERTED.fullmatch, shown.splitlines()) if line}
    return list(found)


def busybox() -> Path:
    """Return a busybox that runs without any library; ToolMissing, UnfitBusybox."""
    path = tools.find("busybox")
    with path.open("rb") as file:
        if any(segment["p_type"] == "PT_INTERP" for segment in ELFFile(file).iter_segments()):
            raise UnfitBusybox(path)
    return path


def archive(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """Return a cpio archive (newc, Documentation/driver-api/early-userspace/buffer-format.rst) of mode and content."""
    directories = {str(parent): None for name in files for parent in Path(name).parents if str(parent) != "."}
    entries = [(name, _DIRECTORY, b"") for name in sorted(directories)]
    entries += [(name, mode, content) for name, (mode, content) in files.items()]
    numbered = [_entry(number, *entry) for number, entry in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1)]
    return b"".join(numbered)


def _entry(inode: int, name: str, mode: int, content: bytes) -> bytes:
    links, encoded = 1, name.encode() + b"\0"
    numbers = (inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + encoded
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _plain(path: Path) -> bytes:
    """Return a module as insmod takes it: packages have them compressed. NoKernel if it is not whole."""
    try:
        return _unpacked(path)
    except (lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise NoKernel(f"{path} cannot be unpacked: {error}") from error
    except ToolError as error:
        raise NoKernel(f"{path} cannot be unpacked: {last_words(error)}") from error


def _unpacked(path: Path) -> bytes:
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    if path.suffix == ".zst":
        with scratch() as directory:
            tools.run(["zstd", "--decompress", "--quiet", str(path), "-o", str(directory / path.stem)])
            return (directory / path.stem).read_bytes()
    return path.read_bytes()


def _lines(words: Sequence[str]) -> bytes:
    return "".join(f"{word}\n" for word in words).encode()
