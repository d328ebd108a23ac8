"""The files that a page is made of: read, told apart, and checked for what the page needs of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datapath.base.statefile import WrongContent
from datapath.errors import ReloadlabError
from lab.node.shape import VERSION as SHAPE_VERSION
from lab.report.shape import Shape, check
from lab.results.result import BadResult, Result, checked_result
from lab.results.result import read_document as read_json
from lab.results.run import RUN_FORMAT

if TYPE_CHECKING:
    from lab.results.history import Lineage

CORPUS_FORMAT = 2
"""Version of what `reloadlab corpus --json` prints."""

Json = Mapping[str, Any]

_WORK: Mapping[str, Shape] = {"tid": int, "start_ns": int, "end_ns": int}
_GATE: Shape = {"what": str, **_WORK}
_PERCENTILES: Shape = {"p50": float, "p95": float, "p99": float, "values_ms": [float]}
_FLOW: Shape = {
    "name": str,
    "protocol": str,
    "sent": int,
    "lost": int,
    "denied": bool,
    "events": dict,
    "delays": {"p50_ns": int, "p99_ns": int, "worst_ns": int, "worst_sent_ns": int, "count": int},
}
_SCENARIO: Shape = {
    "name": str,
    "outcome": str,
    "seconds": float,
    "message": str,
    "violations": [str],
    "sent": int,
    "lost": int,
    "denied": int,
    "steps": {"seen": int, "unseen": int, "unseen_kinds": [str]},
    "gaps": [str],
    "traffic": [
        {
            "started_ns": int,
            "stopped_ns": int,
            "starved": [{"start_ns": int, "end_ns": int}],
            "sent_in_parts": [int],
            "flows": [_FLOW],
        }
    ],
    "findings": [{"what": str, "at_ns": [int]}],
}
_SPANS: Shape = [{"step": str, "target": str, "work": _WORK, "helpers": [_WORK]}]
_RELOAD: Shape = {
    "scenario": str,
    "node": int,
    "subject": str,
    "generation": int,
    "attached": [{"ifname": str, "direction": str, "program": str, "program_id": int, "attachment": str}],
    "migrated": [str],
    "warnings": [str],
    "spans": _SPANS,
}
_FAILED: Shape = {
    "scenario": str,
    "node": int,
    "subject": str,
    "generation": int,
    "error": str,
    "rollback": (type(None), _WORK),
    "spans": _SPANS,
}
_MACHINE: Shape = {"name": str, "kernel": str, "workers": int, "lost": (type(None), str)}
_PARALLEL: Shape = {
    "pods": int,
    "rounds": int,
    "sent": int,
    "lost": int,
    "problems": [str],
    "failures": [str],
    "workers": [
        {
            "workers": int,
            "reloads": int,
            "reloads_per_second": float,
            "reload": (type(None), _PERCENTILES),
            "steps": dict,
            "rounds": [
                {
                    "reloads_per_second": float,
                    "reloads": [{"subject": str, "tid": int, "start_ns": int, "end_ns": int}],
                }
            ],
        }
    ],
}
_INTERFACE: Mapping[str, Shape] = {
    "name": str,
    "ifindex": int,
    "kind": str,
    "mtu": int,
    "up": bool,
    "addresses": [str],
    "peer": (type(None), {"namespace": str, "name": str}),
    "parent": (type(None), str),
    "master": (type(None), str),
    "vlan": (type(None), int),
    "port": (type(None), int),
}
_NODE: Shape = {
    "version": int,
    "datapath_mode": str,
    "attach": str,
    "endpoint_routes": bool,
    "tunnel": bool,
    "tunnel_port": int,
    "xdp": (type(None), str),
    "devices": [str],
    "mtu": int,
    "route_mtu": int,
    "interfaces": [{**_INTERFACE, "ingress": [str], "egress": [str], "xdp": [str]}],
    "routes": [{"destination": str, "via": (type(None), str), "dev": (type(None), str), "text": str}],
    "endpoints": [
        {
            "name": str,
            "ifname": str,
            "endpoint_id": int,
            "identity": int,
            "labels": [str],
            "inside": (type(None), _INTERFACE),
        }
    ],
    "outside": [_INTERFACE],
    "others": [{"number": int, "port": str, "addresses": [str], "pods": [str]}],
}
_RUN: Shape = {
    "complete": bool,
    "error": (type(None), str),
    "version": str,
    "started": str,
    "subject": dict,
    "machine": {"kernel": str, "cpus": int},
    "seconds": float,
    "scenarios": [_SCENARIO],
    "reloads": [_RELOAD],
    "failed_reloads": [_FAILED],
    "parallel": (type(None), _PARALLEL),
}
_CORPUS: Shape = {
    "complete": bool,
    "seconds": float,
    "faults": [
        {
            "fault": str,
            "kind": str,
            "outcome": str,
            "what": str,
            "trial": {
                "sent": int,
                "seconds": float,
                "error": str,
                "catch": (type(None), {"scenario": str, "text": str, "step": str}),
            },
        }
    ],
    "control": [{"scenario": str, "passed": (type(None), bool)}],
}
_SWEEP: Shape = {
    "cases": int,
    "survived": int,
    "failures": [{"what": str, "fault": str, "ended": str, "wrong": [str], "command": str}],
    "findings": [str],
    "gaps": [str],
    "seconds": float,
}
_PROOF: Shape = {
    "calls": [{"round": int, "reload": str, "number": int, "call": str}],
    "sent": int,
    "lost": int,
    "findings": [{"invariant": int, "what": str, "call": (type(None), int)}],
    "gaps": [str],
}
_MEETINGS: Shape = {
    "meetings": int,
    "failures": [{"what": str, "wrong": [str]}],
    "findings": [str],
    "gaps": [str],
    "seconds": float,
}
_RESULT_KEYS = {"bench", "series"}

KINDS: Mapping[str, tuple[frozenset[str], Shape, int | None]] = {
    "run": (frozenset({"scenarios", "reloads"}), _RUN, RUN_FORMAT),
    "corpus": (frozenset({"faults", "control"}), _CORPUS, CORPUS_FORMAT),
    "proof": (frozenset({"calls", "findings"}), _PROOF, None),
    "meetings": (frozenset({"meetings"}), _MEETINGS, None),
    "sweep": (frozenset({"cases", "survived"}), _SWEEP, None),
}
"""The kinds of documents besides results: the keys that tell each, its shape, its version if it has one."""


class BadDocument(ReloadlabError):
    """A file that no page can be made of; str() says why and what to do."""


@dataclass(frozen=True, slots=True)
class Document:
    """A file and what it holds: `kind` is one of KINDS, or `result` with the typed `result`.

    A directory is a `history`, with the series in it.
    """

    name: str
    kind: str
    content: Json
    result: Result | None = None
    history: Sequence[Lineage] = ()


def read_documents(paths: Sequence[Path]) -> list[Document]:
    """Read files of any kind, in their order; BadDocument for the first that cannot be used."""
    return [read_document(path) for path in paths]


def read_document(path: Path) -> Document:
    """Read one file, or a directory of results over commits; BadDocument if no page can be made of it."""
    try:
        if path.is_dir():
            if (run := path / "run.json").is_file():
                raise BadDocument(f"{path} is the directory of a run: give {run}")
            # It compares: a run, which reads its own file, does not wait for that.
            from lab.results.history import lineages

            return Document(str(path), "history", {}, history=lineages(path))
        return to_document(path, read_json(path))
    except BadResult as error:
        raise BadDocument(str(error)) from error


def to_document(path: Path, content: object) -> Document:
    """Return the document that a file holds; BadDocument or BadResult if it is not as one of the kinds must be."""
    if not isinstance(content, dict):
        raise BadDocument(f"{path} holds no JSON object: give a run.json, or what `--out` or `--json` wrote")
    if content.keys() >= _RESULT_KEYS:
        return Document(str(path), "result", content, checked_result(path, content))
    kind = next((name for name, (keys, *_) in KINDS.items() if keys <= content.keys()), None)
    if kind is None:
        raise BadDocument(
            f"{path} is neither a run.json nor a result of `bench --out`, nor what corpus, faults or prove print with "
            "--json"
        )
    _, shape, version = KINDS[kind]
    found = content.get("format")
    if version is not None and found != version:
        raise BadDocument(f"{path} has format {found!r}, this version reads {version}: run it again")
    try:
        check(content, shape)
        if kind == "run":
            _check_steps(content)
            _check_later_keys(content)
    except WrongContent as error:
        raise BadDocument(f"{path} is damaged: {error.reason}") from error
    return Document(str(path), kind, content)


def _check_steps(run: Json) -> None:
    """Check what shapes do not say: every reload is of a scenario, and the steps of parallel reloads."""
    names = {scenario["name"] for scenario in run["scenarios"]}
    if len(names) < len(run["scenarios"]):
        raise WrongContent("two scenarios have the same name")
    for key in ("reloads", "failed_reloads"):
        for number, reload in enumerate(run[key]):
            if reload["scenario"] not in names:
                raise WrongContent(f"{key}[{number}] is of no scenario")
            # Runs of earlier versions have none.
            packets, place = reload.get("packets"), f"{key}[{number}].packets"
            check(packets, (type(None), dict), place)
            for program, count in (packets or {}).items():
                check(count, int, f"{place}.{program}")
    for number, row in enumerate((run["parallel"] or {"workers": ()})["workers"]):
        for step, times in row["steps"].items():
            check(times, _PERCENTILES, f"parallel.workers[{number}].steps.{step}")


def _check_later_keys(run: Json) -> None:
    """Check who ran what, the stops at gates, and the nodes; runs of earlier versions do not say it."""
    check(run.get("machines", []), [_MACHINE], "machines")
    shapes = run.get("nodes", [])
    check(shapes, [{"version": int}], "nodes")
    for number, shape in enumerate(shapes):
        if shape["version"] != SHAPE_VERSION:
            raise WrongContent(f"nodes[{number}] has version {shape['version']}, this version reads {SHAPE_VERSION}")
        check(shape, _NODE, f"nodes[{number}]")
    for number, scenario in enumerate(run["scenarios"]):
        place = f"scenarios[{number}]"
        check(scenario.get("gates", []), [_GATE], f"{place}.gates")
        _check_nodes(scenario.get("nodes", []), len(shapes), f"{place}.nodes")
        if "machine" in scenario:
            check(scenario, {"machine": str, "kernel": str}, place)


def _check_nodes(nodes: object, shapes: int, place: str) -> None:
    """Check the nodes of a scenario; each has one of the shapes."""
    check(nodes, [{"number": int, "shape": int, "names": dict}], place)
    assert isinstance(nodes, list)
    for number, node in enumerate(nodes):
        if not 0 <= node["shape"] < shapes:
            raise WrongContent(f"{place}[{number}] has shape {node['shape']}, of {shapes}")
        for pod, name in node["names"].items():
            check(name, str, f"{place}[{number}].names.{pod}")


def of_kind(documents: Iterable[Document], kind: str) -> list[Document]:
    """Return the documents of a kind."""
    return [document for document in documents if document.kind == kind]
