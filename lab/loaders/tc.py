"""A loader around tc: pods whose objects libbpf takes. tc fills slots and attaches; pins and routes are done here.

One process of tc does all of a reload, from a batch. Each slot loads its program anew (`exec bpf graft`), and each hook
as well (`filter replace`). What tc has done when a line fails stays done.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from datapath.base.mapnames import is_calls_map
from datapath.errors import ReloadlabError, ToolError
from datapath.kernel.pins import Pin
from lab.loaders.protocol import ENDPOINT_ROUTES, LIBBPF, OWN_CALLS_MAPS, POD, UNLOAD, VERSION
from lab.system.mounts import SYSFS_BPF
from lab.system.tools import run

_FAILED = re.compile(r"Command failed -:(\d+)")
"""What tc says last: the number of the line."""

PINS = SYSFS_BPF / "tc/globals"
"""Where tc pins maps."""


class Refused(ReloadlabError):
    """A line that tc could not do: which one, and the first that tc or libbpf said about it."""

    def __init__(self, lines: Sequence[str], stderr: str) -> None:
        said = [line.strip() for line in stderr.splitlines() if line.strip()]
        failed = next((match for line in reversed(said) if (match := _FAILED.fullmatch(line))), None)
        where = "" if failed is None else f": {lines[int(failed[1]) - 1]}"
        super().__init__(f"{said[0] if said else 'no message'} (tc -batch{where})")


def reload(request: Mapping[str, Any], priority: int) -> None:
    """Load, fill the slots and attach; Refused with tc's words."""
    pins = [Pin(PINS / name) for name in {slot["map"] for slot in request["slots"]} if is_calls_map(name)]
    with suppress(ReloadlabError):  # it is there
        run(["tc", "qdisc", "add", "dev", request["interface"], "clsact"])
    moved = [pin for pin in pins if pin.repin()]
    links = list(_links(request))
    try:
        _do(list(_batch(request, priority)))
    except ReloadlabError:
        for pin in moved:
            pin.revert()
        raise
    finally:
        for link in links:
            link.unlink(missing_ok=True)
    _set_routes(request, request["endpoint_routes"])
    if not request["endpoint_routes"]:
        _detach(request["interface"], "egress", priority)
    for pin in moved:
        pin.finalize()


def _do(lines: Sequence[str]) -> None:
    """Have one tc do these lines; it stops at the first that it cannot do."""
    try:
        run(["tc", "-batch", "-"], stdin="".join(f"{line}\n" for line in lines))
    except ToolError as error:
        raise Refused(lines, error.stderr) from error


def unload(request: Mapping[str, Any], priority: int) -> None:
    """Remove a pod's routes and filters; what is gone is no error."""
    _set_routes(request, False)
    for direction in ("ingress", "egress"):
        _detach(request["interface"], direction, priority)


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
    where = f"dev {hook['interface']} {hook['direction']} prio {priority} handle 1"
    return f"filter replace {where} bpf da object-file {_link(hook)} section {hook['section']}"


def _links(request: Mapping[str, Any]) -> Iterator[Path]:
    """Make a link to the object for each hook: tc calls the filter as the file is called."""
    for hook in request["attach"]:
        link = Path(_link(hook))
        link.unlink(missing_ok=True)
        os.symlink(hook["object"], link)
        yield link


def _link(hook: Mapping[str, Any]) -> str:
    return str(Path(hook["object"]).parent / f"{hook['program']}-{hook['interface']}")


def _set_routes(request: Mapping[str, Any], on: bool) -> None:
    for family, address in (("-4", request["endpoint"]["ipv4"]), ("-6", request["endpoint"]["ipv6"])):
        route = [str(address), "dev", request["interface"]]
        if on:
            run(["ip", family, "route", "replace", *route])
        else:
            with suppress(ReloadlabError):  # there is none
                run(["ip", family, "route", "del", *route])


def _detach(interface: str, direction: str, priority: int) -> None:
    with suppress(ReloadlabError):  # there is none
        run(["tc", "filter", "del", "dev", interface, direction, "prio", str(priority)])


def answer(request: Mapping[str, Any], priority: int) -> dict[str, Any]:
    """Do what is asked; what goes wrong is the answer."""
    if request["request"] == "hello":
        supports = [POD, ENDPOINT_ROUTES, UNLOAD, OWN_CALLS_MAPS]
        return {"ok": True, "name": "tc", "version": VERSION, "supports": supports, "objects": LIBBPF}
    try:
        {"reload": reload, "unload": unload}[request["request"]](request, priority)
    except ReloadlabError as error:
        return {"ok": False, "error": str(error)}
    return {"ok": True}


def serve(requests: IO[str], answers: IO[str]) -> None:
    """Answer requests until there are no more."""
    priority = 1
    for line in requests:
        request = json.loads(line)
        if request["request"] == "stop":
            return
        if request["request"] == "hello":
            priority = request["node"]["filter_priority"]
        answers.write(json.dumps(answer(request, priority)) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout)
