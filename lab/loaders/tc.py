"""A loader around tc: pods whose objects libbpf takes. tc fills slots and attaches; the rest is done here.

One process of tc does all of a reload, from a batch. Each slot loads its program anew (`exec bpf graft`), and each hook
as well (`filter replace`). What tc has done when a line fails stays done; if packets meet some of it, the calls maps of
both loads stay pinned.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from datapath.base.mapnames import is_calls_map
from datapath.errors import LinkNotFound, ReloadlabError, ToolError
from datapath.kernel import hooks, progarray, routes
from datapath.kernel.hooks import Direction
from datapath.kernel.map import open_pin
from datapath.kernel.netlink import NetlinkSocket
from datapath.kernel.netns import OWN
from datapath.kernel.pins import Pin
from lab.loaders.protocol import ENDPOINT_ROUTES, LIBBPF, OWN_CALLS_MAPS, POD, UNLOAD, VERSION
from lab.loaders.serving import BadRequest, reading, serve
from lab.system.mounts import SYSFS_BPF
from lab.system.tools import run

_FAILED = re.compile(r"Command failed -:(\d+)")
"""What tc says last: the number of the line."""

PINS = SYSFS_BPF / "tc/globals"
"""Where tc pins maps."""


class Refused(ReloadlabError):
    """A line that tc could not do: which one, and the first that tc or libbpf said about it. Or tc was killed."""

    def __init__(self, lines: Sequence[str], returncode: int, stderr: str) -> None:
        said = [line.strip() for line in stderr.splitlines() if line.strip()]
        failed = next((match for line in reversed(said) if (match := _FAILED.fullmatch(line))), None)
        where = "" if failed is None else f": {lines[int(failed[1]) - 1]}"
        # libbpf's warnings are no reason then.
        killed = f"killed by {signal.Signals(-returncode).name}" if returncode < 0 else ""
        super().__init__(f"{killed or (said[0] if said else 'no message')} (tc -batch{where})")


def reload(request: Mapping[str, Any], priority: int) -> None:
    """Load, fill the slots and attach; Refused with tc's words."""
    with reading():
        lines, addresses, on = list(_batch(request, priority)), _addresses(request), request["endpoint_routes"]
        pins = [Pin(PINS / name) for name in {slot["map"] for slot in request["slots"]} if is_calls_map(name)]
        links = {_link(hook): Path(hook["object"]) for hook in request["attach"]}
    with NetlinkSocket(OWN) as netlink:
        ifindex = netlink.ifindex(request["interface"])
        hooks.ensure_clsact(netlink, ifindex)
        with _linked(links):
            moved = _load(lines, pins, partial(_met, netlink, ifindex, request["slots"]))
        # If this fails, old maps stay at :pending for the next reload: what is attached at egress may use them.
        _set_routes(netlink, addresses, ifindex, on)
        if not on:
            _detach(netlink, ifindex, Direction.EGRESS, priority)
    for pin in moved:
        pin.finalize()


@contextmanager
def _linked(links: Mapping[Path, Path]) -> Iterator[None]:
    """Have links to object files for the time of a block."""
    with ExitStack() as stack:
        for link, target in links.items():
            link.unlink(missing_ok=True)
            link.symlink_to(target)
            stack.callback(link.unlink, missing_ok=True)
        yield


def _load(lines: Sequence[str], pins: Sequence[Pin], met: Callable[[], object]) -> list[Pin]:
    """Have tc do these lines, with new calls maps; return the pins that were moved aside for them.

    If tc fails, the former maps are pinned again, unless packets meet other programs than before, as `met` tells: those
    jump through the new maps, and others through the former ones. Both stay pinned then, until the next reload.
    """
    with ExitStack() as undo:
        moved = []
        for pin in pins:
            if pin.repin(undo.callback):
                moved.append(pin)
        before = met()
        try:
            _do(lines)
        except Refused:
            if met() != before:
                undo.pop_all()
            raise
        undo.pop_all()
    return moved


def _met(netlink: NetlinkSocket, ifindex: int, slots: Sequence[Mapping[str, Any]]) -> list[int | None]:
    """Return the programs that packets of a pod meet first: those at its hooks, and those in policy slots."""
    attached = [each for direction in Direction for each in hooks.all_filters(netlink, ifindex, direction)]
    found: list[int | None] = [each.program_id for each in attached]
    for slot in slots:
        if not is_calls_map(slot["map"]):
            with open_pin(PINS / slot["map"]) as array:
                found.append(progarray.program_at(array.fd, slot["slot"]))
    return found


def _do(lines: Sequence[str]) -> None:
    """Have one tc do these lines; it stops at the first that it cannot do."""
    try:
        run(["tc", "-batch", "-"], stdin="".join(f"{line}\n" for line in lines))
    except ToolError as error:
        raise Refused(lines, error.returncode, error.stderr) from error


def unload(request: Mapping[str, Any], priority: int) -> None:
    """Remove a pod's routes and filters; what is gone is no error.

    An interface of the same name that came later is another pod's, and keeps what it has.
    """
    with reading():
        interface, former, addresses = request["interface"], request["ifindex"], _addresses(request)
    with NetlinkSocket(OWN) as netlink:
        try:
            ifindex = netlink.ifindex(interface)
        except LinkNotFound:
            return
        if former not in (None, ifindex):
            return
        _set_routes(netlink, addresses, ifindex, False)
        for direction in Direction:
            _detach(netlink, ifindex, direction, priority)


def _batch(request: Mapping[str, Any], priority: int) -> Iterator[str]:
    """Yield the lines for tc: the tail calls first, and a program that leaves the policy to another one after that."""
    calls = [slot for slot in request["slots"] if is_calls_map(slot["map"])]
    policy = [slot for slot in request["slots"] if slot not in calls]
    egress = [hook for hook in request["attach"] if hook["direction"] == "egress"]
    ingress = [hook for hook in request["attach"] if hook not in egress]
    yield from map(_graft, calls)
    yield from (_replace(hook, priority) for hook in egress)
    yield from map(_graft, policy)
    yield from (_replace(hook, priority) for hook in ingress)


def _graft(slot: Mapping[str, Any]) -> str:
    where = f"m:globals/{slot['map']} key {slot['slot']}"
    return f"exec bpf graft {where} object-file {slot['object']} section {slot['section']}"


def _replace(hook: Mapping[str, Any], priority: int) -> str:
    where = f"dev {hook['interface']} {hook['direction']} prio {priority} handle {hooks.HANDLE}"
    return f"filter replace {where} bpf da object-file {_link(hook)} section {hook['section']}"


def _link(hook: Mapping[str, Any]) -> Path:
    """Return the link to the object of a hook: tc calls the filter as the file is called."""
    return Path(hook["object"]).with_name(hooks.filter_name(hook["program"], hook["interface"]))


def _addresses(request: Mapping[str, Any]) -> list[IPv4Address | IPv6Address]:
    return [ip_address(text) for text in (request["endpoint"]["ipv4"], request["endpoint"]["ipv6"]) if text is not None]


def _set_routes(netlink: NetlinkSocket, addresses: Sequence[IPv4Address | IPv6Address], ifindex: int, on: bool) -> None:
    """Install or remove the routes to a pod; a missing one is no error."""
    for address in addresses:
        (routes.upsert if on else routes.remove)(netlink, routes.Route(address, ifindex))


def _detach(netlink: NetlinkSocket, ifindex: int, direction: Direction, priority: int) -> None:
    """Remove the filter that a reload has attached, if there is one."""
    for found in hooks.filters(netlink, ifindex, direction):
        if (found.priority, found.handle) == (priority, hooks.HANDLE):
            hooks.detach(netlink, found)


class Tc:
    """Answers requests about one node."""

    def __init__(self) -> None:
        self._priority = 1

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do what is asked, and return what there is to say of it."""
        match request["request"]:
            case "hello":
                with reading():
                    self._priority = request["node"]["filter_priority"]
                supports = [POD, ENDPOINT_ROUTES, UNLOAD, OWN_CALLS_MAPS]
                return {"name": "tc", "version": VERSION, "supports": supports, "objects": LIBBPF}
            case "reload":
                reload(request, self._priority)
            case "unload":
                unload(request, self._priority)
            case unknown:
                raise BadRequest(f"unknown request {unknown}")
        return {}


if __name__ == "__main__":
    serve(Tc().answer, sys.stdin.buffer, sys.stdout.buffer)
