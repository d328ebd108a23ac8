"""Restore: which endpoints a node has, as its state directories tell a process that knows nothing else.

After pkg/endpoint/restore.go and daemon/cmd/state.go. An endpoint has the directory of its number, with an ep_config.h
that says all about it. Directories `<number>_next`, `_next_fail` and `_stale` are what a loader that builds in a
directory of its own leaves when it is killed: they count only if the endpoint has no other. (The reference looks at no
`_stale` one: an agent that dies between its two renames loses the endpoint, cilium issue 29275.)

Nothing is removed before everything is reloaded: `sweep` comes last (cilium issue 7982).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from datapath.base.mapnames import endpoint_of
from datapath.base.statefile import WrongContent
from datapath.build.epheader import HEADER_FILE, parse_header
from datapath.endpoint import DatapathConfig, Endpoint, Interface
from datapath.errors import printable
from datapath.kernel.inventory import reach
from datapath.kernel.netlink import NetlinkSocket
from datapath.kernel.pins import map_id
from datapath.reload import policyarrays, retired, tcxlinks

_DIRECTORY = re.compile(r"(?P<number>[1-9]\d{0,4})(?P<suffix>|_next|_stale|_next_fail)")
_SUFFIXES = ("", "_next", "_stale", "_next_fail")
"""In the order in which they count: what was to come into place, what was in place before, what failed."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the state directories say.

    `endpoints` are those that are known, each with the directory that tells it. `unknown` are the numbers of which no
    directory can be read, each with the reason.
    """

    endpoints: dict[int, tuple[Endpoint, Path]]
    unknown: dict[int, str]


def find_endpoints(state: Path) -> Found:
    """Read the endpoints of a state directory; nothing is changed."""
    directories: dict[int, dict[str, Path]] = {}
    for path, match in _directories(state):
        directories.setdefault(int(match["number"]), {})[match["suffix"]] = path
    endpoints: dict[int, tuple[Endpoint, Path]] = {}
    unknown: dict[int, str] = {}
    for number, found in sorted(directories.items()):
        reasons = []
        for path in (found[suffix] for suffix in _SUFFIXES if suffix in found):
            try:
                endpoints[number] = _read(path, number), path
                break
            except WrongContent as error:
                reasons.append(error.reason)
        else:
            unknown[number] = "; ".join(reasons)
    return Found(endpoints, unknown)


def _read(directory: Path, number: int) -> Endpoint:
    path = directory / HEADER_FILE
    try:
        endpoint = parse_header(path.read_bytes())
    except FileNotFoundError:
        raise WrongContent(f"{directory.name} has no {HEADER_FILE}") from None
    except (WrongContent, IsADirectoryError) as error:
        said = error.reason if isinstance(error, WrongContent) else "it is a directory"
        raise WrongContent(f"{directory.name}/{HEADER_FILE}: {said}") from error
    if endpoint.id != number:
        raise WrongContent(f"{directory.name}/{HEADER_FILE}: it is that of endpoint {endpoint.id}")
    return endpoint


def why_not(endpoint: Endpoint, links: dict[str, Interface]) -> str | None:
    """Return why an endpoint cannot be restored, None if it can: its interface is there, and is the one that it had.

    (pkg/endpoint: ValidateConnectorPlumbing, which asks for the name alone.)
    """
    name = printable(endpoint.ifname)
    link = links.get(endpoint.ifname)
    if link is None:
        return f"its interface {name} does not exist"
    if endpoint.ifindex not in (None, link.ifindex):
        return f"its interface {name} had index {endpoint.ifindex}, one of that name has {link.ifindex} now"
    if link.mac is not None and link.mac != endpoint.node_mac:
        return f"its interface {name} had MAC {endpoint.node_mac}, one of that name has {link.mac} now"
    return None


def take_place(state: Path, number: int, directory: Path) -> None:
    """Make the directory that tells an endpoint the one in which its reloads work; nobody may be reloading it."""
    place = state / str(number)
    if directory == place:
        return
    try:
        directory.rename(place)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        # It tells nothing, but reloads have their lock there.
        os.replace(directory / HEADER_FILE, place / HEADER_FILE)


def sweep(config: DatapathConfig, netlink: NetlinkSocket, keep: Collection[int]) -> list[str]:
    """Remove what belongs to endpoints that are not in `keep`, and return what was removed.

    Links, policy slots, pins, directories, in the order of an unload; which slots, the pins and directories say
    (pkg/datapath/maps: deleteMapIfStale). A map that an attached program uses stays, whoever it belongs to: the kernel
    would empty a calls map. The caller excludes all reloads.
    """
    pins, stale = _stale_pins(config, keep), _stale_directories(config, keep)
    removed = [f"links of endpoint {number}" for number in tcxlinks.remove_others(config, keep)]
    if not pins and not stale:
        return removed
    for number in sorted({*pins.values(), *stale.values()} - set(keep)):
        policyarrays.clear(config.globals, number)
    used = reach(retired.attached_programs(netlink, config.netns)).maps if pins else frozenset()
    for name in pins:
        path = config.globals / name
        if map_id(path) not in used:
            path.unlink()
            removed.append(f"pin {name}")
    for directory in stale:
        shutil.rmtree(directory)
        removed.append(f"directory {directory.name}")
    return removed


def _stale_pins(config: DatapathConfig, keep: Collection[int]) -> dict[str, int]:
    """Return the pins of endpoints that are not in `keep`, with the endpoint of each."""
    names = sorted(os.listdir(config.globals)) if config.globals.is_dir() else []
    owned = {name: number for name in names if (number := endpoint_of(name)) is not None}
    return {name: number for name, number in owned.items() if number not in keep}


def _stale_directories(config: DatapathConfig, keep: Collection[int]) -> dict[Path, int]:
    """Return the directories that are none of an endpoint in `keep`, with the number of each."""
    found = {path: (int(match["number"]), match["suffix"]) for path, match in _directories(config.state)}
    return {path: number for path, (number, suffix) in found.items() if suffix or number not in keep}


def _directories(state: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    """Yield the directories that are, or were to become, those of endpoints, with what their names say."""
    for entry in sorted(os.scandir(state), key=lambda entry: entry.name):
        match = _DIRECTORY.fullmatch(entry.name)
        if match is not None and entry.is_dir(follow_symlinks=False):
            yield Path(entry.path), match
