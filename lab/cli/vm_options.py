"""The options of commands that run in virtual machines, and what they come to."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lab.cli.targets import BadOption, count

if TYPE_CHECKING:
    from lab.vm.kernels import Kernel

KERNELS_HELP = "a version that was fetched (reloadlab vm fetch), such as 6.12 or newest, or the path of an image"


def add_machine_options(parser: argparse.ArgumentParser, *, prefix: str = "") -> None:
    """Declare what a virtual machine may be told; with `prefix` where the command has other options as well."""
    parser.add_argument(
        f"--{prefix}cpus", dest="vm_cpus", type=count, metavar="N", help="CPUs of a machine (1 if emulated, else all)"
    )
    parser.add_argument(
        f"--{prefix}silence",
        dest="vm_silence",
        type=count,
        metavar="SECONDS",
        help="give up a machine that prints nothing for so long (180; 900 if emulated)",
    )


def kernel_list(text: str) -> list[str]:
    """Return the words of a list with commas; ArgumentTypeError if one is empty, or there twice."""
    words = text.split(",")
    if "" in words or len(set(words)) < len(words):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of different kernels, such as 6.1,6.12")
    return words


def found(texts: Sequence[str]) -> list[Kernel]:
    """Return the kernels that are meant; NoKernel, or BadOption if two have the same name."""
    from lab.vm.kernels import find

    kernels = [find(text) for text in texts]
    if len({kernel.label for kernel in kernels}) < len(kernels):
        raise BadOption("two of these kernels are the same release: run one of them at a time")
    return kernels


def machine_of(args: argparse.Namespace) -> tuple[int, float]:
    """Return the number of CPUs and the allowed silence in seconds, and say on stderr if machines are emulated."""
    from lab.vm.machine import silence_allowed, without_kvm

    reason = without_kvm()
    if reason:
        print(f"reloadlab: emulated, 10 to 20 times slower: {reason}", file=sys.stderr)
    return args.vm_cpus or (1 if reason else os.cpu_count() or 1), float(args.vm_silence or silence_allowed())


def printer(label: str, *, stderr: bool = False) -> Callable[[str], None]:
    """Return what prints a line of a machine's output, with the kernel in front if it has a label."""
    front = f"{label} | " if label else ""

    def say(line: str) -> None:
        print(front + line, file=sys.stderr if stderr else sys.stdout, flush=True)

    return say
