"""What the lab and a loader say to each other: a JSON object a line, one answer for each request (docs/loaders.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datapath.base.statefile import WrongContent, parse_json
from datapath.base.timing import Interval
from datapath.errors import ReloadlabError

VERSION = 1

POD, HOST, OVERLAY = KINDS = ("pod", "host", "overlay")
"""What can be reloaded; the health endpoint is a pod."""
ENDPOINT_ROUTES, UNLOAD, CANCEL, ROLLBACK = "endpoint-routes", "unload", "cancel", "rollback"
OWN_CALLS_MAPS, TCX, HOST_FIREWALL = "own-calls-maps", "tcx", "host-firewall"
ABILITIES = (*KINDS, ENDPOINT_ROUTES, UNLOAD, CANCEL, ROLLBACK, OWN_CALLS_MAPS, TCX, HOST_FIREWALL)
"""What a loader may say that it supports."""

TEMPLATES, LIBBPF, NONE = FORMS = ("templates", "libbpf", "none")
"""How the lab makes object files: templates with constants put in, with legacy map definitions as Cilium's are; or one
compilation an endpoint, in the form that libbpf takes. Of a loader that compiles: those are written, or none at all."""

MOST_ERROR = 500
"""Characters of a loader's error that are told."""


class LoaderError(ReloadlabError):
    """Something that went wrong with a loader, called `name`; `reason` says what."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"loader {name}: {reason}")
        self.name = name
        self.reason = reason


class LoaderFailed(LoaderError):
    """A request that the loader answered with an error of its own."""


class LoaderBroken(LoaderError):
    """A loader that cannot be started, does not answer, or not as the protocol says."""


class LoaderDied(LoaderBroken):
    """A loader whose process ended; `killed` tells whether by SIGKILL."""

    def __init__(self, name: str, reason: str, *, killed: bool) -> None:
        super().__init__(name, reason)
        self.killed = killed


class NotSupported(ReloadlabError):
    """Something that a loader does not do, as it says itself, or that only our own pipeline promises."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"not supported by loader {name}: {what}")
        self.name = name
        self.what = what


class BadAnswer(ReloadlabError):
    """An answer that is not as the protocol says; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a loader says of itself.

    With `compiles` it compiles itself, from the library. `objects` is the form in which the lab makes object files
    otherwise, one of FORMS; with NONE there is no file of what it has loaded.
    """

    name: str
    supports: frozenset[str]
    compiles: bool = False
    objects: str = TEMPLATES


@dataclass(frozen=True, slots=True)
class Done:
    """A request that was done: pieces of work with their times, by name, and what a reader should know."""

    spans: tuple[tuple[str, Interval], ...] = ()
    warnings: tuple[str, ...] = ()


def parse(line: bytes) -> dict[str, Any]:
    """Return an answer, which says whether the request was done (`ok`), and why not (`error`); BadAnswer."""
    try:
        document = parse_json(line)
    except WrongContent as error:
        raise BadAnswer(f"answered {_shown(line)}, which is {error.reason}") from error
    if not isinstance(document, dict) or type(document.get("ok")) is not bool:
        raise BadAnswer(f'answered {_shown(line)}: no object with "ok": true or false')
    if not document["ok"] and not (isinstance(document.get("error"), str) and document["error"].strip()):
        raise BadAnswer(f'answered {_shown(line)}: "ok": false without an "error"')
    return document


def error_of(answer: Mapping[str, Any]) -> str | None:
    """Return the error of an answer as one line; None if the request was done."""
    if answer["ok"]:
        return None
    lines = [line.strip() for line in answer["error"].splitlines() if line.strip()]
    return "; ".join(lines)[:MOST_ERROR]


def greeting(answer: Mapping[str, Any]) -> Greeting:
    """Return what an answer to `hello` says; BadAnswer."""
    version = answer.get("version", VERSION)
    if version != VERSION:
        raise BadAnswer(f"speaks version {version} of the protocol, this reloadlab version {VERSION}")
    name, supports = answer.get("name"), answer.get("supports")
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise BadAnswer('says no "name" in its answer to hello')
    if not isinstance(supports, list) or not all(isinstance(word, str) for word in supports):
        raise BadAnswer('has no list "supports" in its answer to hello')
    for word in supports:
        if word not in ABILITIES:
            raise BadAnswer(f"supports {word!r}, which is none of {', '.join(ABILITIES)}")
    compiles, objects = answer.get("compiles", False), answer.get("objects", TEMPLATES)
    if type(compiles) is not bool:
        raise BadAnswer('"compiles" is neither true nor false')
    if objects not in FORMS:
        raise BadAnswer(f'"objects" is {objects!r}, not one of {", ".join(FORMS)}')
    if objects == NONE and not compiles:
        raise BadAnswer('"objects": "none" is for a loader that compiles')
    if objects == LIBBPF and not set(supports).isdisjoint((HOST, OVERLAY)):
        raise BadAnswer('"objects": "libbpf" is there for pods alone')
    return Greeting(name.strip(), frozenset(supports), compiles, objects)


def done(answer: Mapping[str, Any], thread: int) -> Done:
    """Return what an answer says of what was done, the work as that of `thread`; BadAnswer."""
    found, warnings = answer.get("spans", []), answer.get("warnings", [])
    if not isinstance(found, list):
        raise BadAnswer('"spans" is no list')
    if not isinstance(warnings, list) or not all(isinstance(text, str) for text in warnings):
        raise BadAnswer('"warnings" is no list of texts')
    return Done(tuple(_span(span, thread) for span in found), tuple(warnings))


def _span(span: object, thread: int) -> tuple[str, Interval]:
    if isinstance(span, dict):
        name, start, end = (span.get(key) for key in ("name", "start_ns", "end_ns"))
        if isinstance(name, str) and type(start) is int and type(end) is int and 0 <= start <= end:
            return name, Interval(thread, start, end)
    raise BadAnswer(f"a span is {span!r}, not name, start_ns and end_ns of CLOCK_MONOTONIC")


def _shown(line: bytes) -> str:
    text = line.decode(errors="replace").strip()
    return repr(text if len(text) <= 60 else f"{text[:60]}...")
