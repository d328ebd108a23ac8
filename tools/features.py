"""features.py FILE [FEATURE ...]: try features on every release of Cilium that FILE names, and print a table of them.

FILE is what RELOADLAB_RELEASES names as well: docs/releases.md says how it is written, and what the features are; `all`
are all of them. What is found is kept in out/releases/RELEASE/features.json, and what is not tried again stays. Without
FEATURE nothing is tried: the table is of what is there. Root is needed. A release that cannot do something has the
reason in its place; that is a result, and the exit code 0.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import script

from reloadlab import Node, Release, ReloadlabError, read_releases

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "out" / "releases"
RELOADLAB = str(ROOT / ".venv/bin/reloadlab")
CASES = 12
TIMEOUT = 1800.0
"""Seconds of the longest command, a proof."""
VERDICTS = (0, 1, 3)
"""Exit codes of a proof that came to its end: it holds, it does not, nothing can be said."""

ONLY_HOST = [{"name": "only the host", "endpoint": "pod-2", "ingress": [{"fromEntities": ["host"]}]}]
NO_WORLD = [{"name": "no world", "endpoint": "host", "ingress": [{"fromEntities": ["cluster", "host", "health"]}]}]


class Failed(Exception):
    """What a release does not do; str() is the reason."""


@dataclass(frozen=True)
class Lab:
    """A lab of a release; `options` are those with which it is loaded."""

    name: str
    options: Sequence[str]

    def reloadlab(self, *words: str, codes: Sequence[int] = (0,)) -> str:
        """Run a command, and return what it prints; Failed with the line that it says, if its code is none of these."""
        print(f"reloadlab {' '.join(words)}", file=sys.stderr)
        done = run([RELOADLAB, *words])
        if done.returncode not in codes:
            said = [line for line in done.stderr.splitlines() if line.startswith("reloadlab: ")]
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise Failed(f"`{words[0]}`: {(said or [last])[-1].removeprefix('reloadlab: ')}")
        return done.stdout

    @contextmanager
    def up(self, *words: str) -> Iterator[None]:
        """Have the lab for a while."""
        try:
            self.reloadlab("up", self.name, *words, *self.options)
            yield
        finally:
            run([RELOADLAB, "down", self.name])

    def reload(self, *words: str) -> None:
        self.reloadlab("reload", self.name, *words)

    def is_answered(self, place: str, address: object) -> bool:
        """Tell whether any of three pings from a place is answered."""
        return run([RELOADLAB, "exec", place, "--", "ping", "-c3", "-i0.2", "-W2", str(address)]).returncode == 0

    def talk(self, when: str) -> None:
        """Have a pod ping another one, the router and the outside world."""
        spec, other = Node.open(self.name).spec, Node.open(self.name).pod("pod-2")
        targets = {"pod-2": (other.ipv4, other.ipv6), "the router": (spec.router4, spec.router6)}
        targets["outside"] = (spec.outside4.ip, spec.outside6.ip)
        self._ping(f"{self.name}/pod-1", targets, when)

    def talk_to(self, node: str, when: str) -> None:
        """Have a pod of the first node of a cluster ping one of another node."""
        other = Node.open(node).pod("pod-1")
        self._ping(f"{self.name}-1/pod-1", {f"{node}/pod-1": (other.ipv4, other.ipv6)}, when)

    def _ping(self, place: str, targets: Mapping[str, Sequence[object]], when: str) -> None:
        silent = [
            f"{name} by IPv{number}"
            for name, addresses in targets.items()
            for number, address in zip((4, 6), addresses, strict=True)
            if not self.is_answered(place, address)
        ]
        if silent:
            raise Failed(f"{when}, no answer from {', '.join(silent)}")

    def apply(self, policies: object) -> None:
        with NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(policies, file)
            file.flush()
            self.reloadlab("policy", self.name, file.name)

    def pod_routes(self) -> int:
        """Return how many pods of the node have a route of their own."""
        found = run([RELOADLAB, "exec", self.name, "--", "ip", "-json", "-4", "route"]).stdout
        pods = {str(pod.ipv4) for pod in Node.open(self.name).pods}
        return len(pods & {route["dst"] for route in json.loads(found)})


def run(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=TIMEOUT)


def whole(lab: Lab) -> str:
    return _reloaded(lab, "--tunnel", "--devices", "eth0")


def native(lab: Lab) -> str:
    return _reloaded(lab)


def _reloaded(lab: Lab, *words: str) -> str:
    with lab.up(*words):
        lab.talk("loaded")
        lab.reload()
        lab.talk("reloaded")
    return "works"


def endpoint_routes(lab: Lab) -> str:
    with lab.up():
        lab.reload("--endpoint-routes")
        lab.talk("with endpoint routes")
        if not lab.pod_routes():
            raise Failed("no pod has a route")
        lab.reload("--no-endpoint-routes")
        lab.talk("without endpoint routes again")
        left = lab.pod_routes()
    return f"works; {left} routes of pods stay when it is off" if left else "works"


def tcx(lab: Lab) -> str:
    with lab.up():
        for attach in ("tcx", "tc"):
            lab.reload("--attach", attach)
            lab.talk(f"by {attach}")
    return "works, from tc to tcx and back"


def policy(lab: Lab) -> str:
    with lab.up():
        lab.apply(ONLY_HOST)
        lab.reloadlab("reload", f"{lab.name}/pod-2")
        target = Node.open(lab.name).pod("pod-2")
        for number, address in ((4, target.ipv4), (6, target.ipv6)):
            if lab.is_answered(f"{lab.name}/pod-1", address):
                raise Failed(f"pod-1 is let in by IPv{number}")
            if not lab.is_answered(lab.name, address):
                raise Failed(f"the host is kept out by IPv{number}")
    return "works"


def two_nodes(lab: Lab) -> str:
    nodes = [replace(lab, name=f"{lab.name}-{number}") for number in (1, 2)]
    with lab.up("--nodes", "2", "--pods", "1", "--tunnel", "--devices", "eth0"):
        lab.talk_to(nodes[1].name, "loaded")
        for node in nodes:
            node.reload("--endpoint-routes")
        lab.talk_to(nodes[1].name, "with endpoint routes")
    return "works"


def prove(lab: Lab) -> str:
    found = json.loads(lab.reloadlab("prove", "pod-1", *lab.options, "--json", codes=VERDICTS))
    if found["undecided"]:
        return str(found["undecided"])
    loss = f"{found['lost']} lost" if found["lost"] else "none lost"
    others = len([item for item in found["findings"] if item["invariant"] != 7])
    return f"{len(found['calls'])} calls, {found['sent']} packets, {loss}" + (f", {others} findings" if others else "")


def faults(lab: Lab) -> str:
    words = ("faults", "pod-1", "--sample", str(CASES), *lab.options, "--json")
    found = json.loads(lab.reloadlab(*words, codes=VERDICTS))
    if found["undecided"]:
        return str(found["undecided"])
    return f"{found['survived']} of {found['cases']} survived, of {found['possible']} there are"


def firewall(lab: Lab) -> str:
    """The host's firewall; a loader of Cilium's is told by a flag (docs/loaders.md)."""
    options = [f"{word} -host-firewall" if before == "--loader" else word for before, word in _pairs(lab.options)]
    lab = replace(lab, options=[*options, "-D", "ENABLE_HOST_FIREWALL=1"])
    with lab.up("--devices", "eth0"):
        spec = Node.open(lab.name).spec
        lab.talk("without a policy")
        lab.apply(NO_WORLD)
        for number, address in ((4, spec.node4.ip), (6, spec.node6.ip)):
            if lab.is_answered(f"{lab.name}/outside", address):
                raise Failed(f"the outside is let in by IPv{number}")
            if not lab.is_answered(f"{lab.name}/pod-1", address):
                raise Failed(f"pods are kept out by IPv{number}")
    return "works: a policy keeps the outside out of the host"


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    return zip(("", *words), words, strict=False)


@dataclass(frozen=True)
class Feature:
    """A row of the table: what it is, the command that shows it, and what tries it."""

    title: str
    command: str
    attempt: Callable[[Lab], str] = field(repr=False)


FEATURES: Mapping[str, Feature] = {
    "whole": Feature("pods, health, host with `eth0`, overlay", "up demo --tunnel --devices eth0", whole),
    "native": Feature("a node without a tunnel", "up demo", native),
    "routes": Feature("endpoint routes on, then off again", "reload demo --endpoint-routes", endpoint_routes),
    "tcx": Feature("tcx", "reload demo --attach tcx", tcx),
    "policy": Feature("a policy that lets only the host in", "policy demo FILE", policy),
    "nodes": Feature("two nodes, both routing modes", "up two --nodes 2 --tunnel --devices eth0", two_nodes),
    "firewall": Feature("the host's firewall", "up demo --devices eth0 -D ENABLE_HOST_FIREWALL=1", firewall),
    "prove": Feature("packets at every system call", "prove pod-1", prove),
    "faults": Feature("a fault at a sample of the calls", f"faults pod-1 --sample {CASES}", faults),
}


def result_of(release: Release) -> Path:
    return OUT / release.name / "features.json"


def known(release: Release) -> dict[str, str]:
    """Return what was found of a release, by the name of the feature."""
    path = result_of(release)
    try:
        found: Any = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise ReloadlabError(f"{path}: not JSON ({error}); remove it") from error
    return {name: str(said) for name, said in found.items() if name in FEATURES}


def attempt(release: Release, names: Sequence[str]) -> None:
    """Try features of a release, one after the other, and keep what is found of each."""
    path = result_of(release)
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        print(f"{release.name}: {FEATURES[name].title}", file=sys.stderr)
        lab = Lab(f"features-{os.getpid()}", release.argv)
        try:
            said = FEATURES[name].attempt(lab)
        except (Failed, ReloadlabError) as error:
            said = f"fails: {error}"
        except subprocess.TimeoutExpired:
            said = f"fails: no end in {TIMEOUT:.0f} s"
        path.write_text(json.dumps({**known(release), name: said}, indent=1))


def main(file: str, *words: str) -> int:
    names = list(FEATURES) if words == ("all",) else list(words)
    if unknown := [name for name in names if name not in FEATURES]:
        print(f"features.py: there is no {unknown[0]}; there are {', '.join(FEATURES)}, all", file=sys.stderr)
        return script.BADLY_CALLED
    releases = read_releases(Path(file))
    for release in releases if names else ():
        attempt(release, names)
    tables = [known(release) for release in releases]
    print(f"| what | command | {' | '.join(release.name for release in releases)} |\n|{'---|' * (len(releases) + 2)}")
    for name, feature in FEATURES.items():
        cells = (table.get(name, "not tried").replace("|", "\\|") for table in tables)
        print(f"| {feature.title} | `{feature.command}` | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    script.run(main, __doc__)
