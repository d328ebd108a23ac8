"""The page: one HTML file with everything in it, made of the documents that a run, benchmarks and trials wrote.

Nothing is loaded from anywhere: a Content-Security-Policy allows the page's own scripts, by their hashes, and no
request. What a scenario or a figure needs is compressed; the browser unpacks it, and plotly, when it is first shown.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import BytecodeCache, Environment, FileSystemLoader, StrictUndefined
from jinja2.bccache import Bucket
from markupsafe import Markup

from datapath.build.objectcache import key_of
from lab.report.baseline import Baseline
from lab.report.comparison import Compared, comparisons, result_figures, result_table
from lab.report.distributions import parallel_figures, rates_table, step_figure
from lab.report.documents import Document, of_kind
from lab.report.figure import Figure, duration, number
from lab.report.kernels import ByKernel, by_kernel
from lab.report.scenarios import LISTED, SIGNS, Scenario, open_scenario, outcomes, scenarios_of
from lab.report.sidebyside import has_many_sides, overview, refusals, side_figures, tables_without_figure
from lab.report.trends import trends
from lab.report.trials import sentence, tables
from lab.results.compare import Named
from lab.results.result import Result
from lab.system.cache import keep, kept
from lab.system.words import plural

TRIALS = {
    "corpus": "Known bugs",
    "sweep": "Faults at system calls",
    "proof": "Packets at system calls",
    "meetings": "Two reloads at once",
}
"""The kinds of documents that are shown as tables, with their headings."""

_HERE = Path(__file__).parent / "page"
_TOLD = 20
"""Scenarios that went wrong and are told at the top; the table has all."""


@dataclass(slots=True)
class Chunks:
    """What the page carries compressed, by the id under which the browser finds it."""

    packed: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, content: object) -> str:
        """Keep something that is JSON, and return its id."""
        self.packed[name] = _pack(json.dumps(content, separators=(",", ":"), allow_nan=False))
        return name


@dataclass(frozen=True)
class Run:
    """A run as the page shows it; `number` tells it from others on the same page."""

    number: int
    document: Document
    scenarios: Sequence[Scenario]

    @property
    def content(self) -> Mapping[str, Any]:
        return self.document.content

    @property
    def complete(self) -> bool:
        return bool(self.content["complete"])

    @cached_property
    def bad(self) -> list[Scenario]:
        return [scenario for scenario in self.scenarios if scenario.bad]

    @property
    def told(self) -> Sequence[Scenario]:
        return self.bad[:_TOLD]

    @cached_property
    def outcomes(self) -> list[tuple[str, str, int]]:
        return list(outcomes(self.scenarios))

    @cached_property
    def problems(self) -> list[str]:
        """What parallel reloads did wrong."""
        parallel = self.content["parallel"]
        return [] if parallel is None else [*parallel["failures"], *parallel["problems"]]

    @cached_property
    def unchecked(self) -> list[tuple[str, int]]:
        """What was not checked, and in how many scenarios: of that, one that passed says nothing."""
        return Counter(gap for scenario in self.scenarios for gap in scenario.record["gaps"]).most_common()

    @property
    def state(self) -> str:
        """A word for the colour of the verdict: bad, open, good."""
        if self.bad or self.problems:
            return "bad"
        passed = any(scenario.outcome == "passed" for scenario in self.scenarios)
        return "good" if passed and self.complete and not self.left_out else "open"

    @property
    def left_out(self) -> int:
        return sum(count for outcome, _, count in self.outcomes if outcome in ("not run", "running"))

    @property
    def verdict(self) -> str:
        """The run in one sentence."""
        total = len(self.scenarios)
        if not total:
            return "No scenario was run"
        words = [f"{len(self.bad)} of {plural(total, 'scenario')} failed"] if self.bad else []
        words += ["parallel reloads failed"] if self.problems else []
        words += [f"{self.left_out} not run"] if self.left_out else []
        if words:
            return ", ".join(words)
        return "Nothing went wrong" if self.state == "good" else "Nothing was found, and not everything was checked"

    @cached_property
    def facts(self) -> list[tuple[str, str]]:
        """What ran where, as names and values."""
        machine, reloads, failed = (self.content[name] for name in ("machine", "reloads", "failed_reloads"))
        sent = sum(scenario.record["sent"] for scenario in self.scenarios)
        lost = sum(scenario.record["lost"] for scenario in self.scenarios)
        subject = [(str(name), str(value)) for name, value in self.content["subject"].items()]
        return [
            ("scenarios", f"{len(self.scenarios):,}"),
            ("packets sent", f"{sent:,}"),
            ("packets lost", f"{lost:,}"),
            ("reloads", f"{len(reloads):,}"),
            ("reloads that failed", f"{len(failed):,}{self._on_purpose(failed)}"),
            ("steps", f"{sum(len(reload['spans']) for reload in (*reloads, *failed)):,}"),
            ("took", duration(self.content["seconds"] * 1e9)),
            *self._machines(machine),
            ("started", self.content["started"] or "not known"),
            ("reloadlab", self.content["version"] or "not known"),
            *((name, value) for name, value in subject if not name.endswith("sha256")),
        ]

    def _machines(self, machine: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return what ran the scenarios: this machine, or each of several."""
        several = self.content.get("machines", ())
        if not several:
            return [("kernel", machine["kernel"]), ("CPUs", str(machine["cpus"]))]
        lost = {each["name"]: f", lost: {each['lost']}" if each["lost"] else "" for each in several}
        return [
            (each["name"], f"kernel {each['kernel']}, {each['workers']} at a time{lost[each['name']]}")
            for each in several
        ]

    def _on_purpose(self, failed: Sequence[Mapping[str, Any]]) -> str:
        """Return a remark if every failed reload is one that its scenario wanted to fail."""
        passed = {scenario.record["name"] for scenario in self.scenarios if scenario.outcome == "passed"}
        return " on purpose" if failed and all(reload["scenario"] in passed for reload in failed) else ""


class PageMaker:
    """Makes a page of documents; `baseline` is what some of them are compared with."""

    def __init__(
        self, documents: Sequence[Document], *, baseline: Baseline | None = None, threshold: float = 0.02
    ) -> None:
        self._documents = documents
        self._baseline = baseline
        self._threshold = threshold
        self._chunks = Chunks()
        self._environment = Environment(
            loader=FileSystemLoader(_HERE),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            bytecode_cache=_Templates(),
        )
        self._environment.filters |= {"plural": plural, "number": number}
        self._environment.globals |= {"figure": self._figure, "signs": SIGNS, "listed": LISTED}

    def make(self) -> str:
        """Return the page."""
        runs = [self._run(number, each) for number, each in enumerate(of_kind(self._documents, "run"), 1)]
        style, script = ((_HERE / name).read_text() for name in ("page.css", "page.js"))
        # Sections add chunks while they are written: the page ends with those.
        body = self._environment.get_template("body.html").render(
            runs=runs,
            results=[(each.name, each.result) for each in of_kind(self._documents, "result")],
            sided=[
                (each.name, each.result)
                for each in of_kind(self._documents, "result")
                if each.result is not None and has_many_sides(each.result)
            ],
            compared=self._compared(),
            trials=[
                (TRIALS[each.kind], each, *sentence(each), tables(each))
                for each in self._documents
                if each.kind in TRIALS
            ],
            histories=[
                (each.name, trends(each.history, self._threshold)) for each in of_kind(self._documents, "history")
            ],
            kernels=self._kernels(),
            by_kernel=_by_kernel(runs),
            parallel_figures=parallel_figures,
            step_figure=step_figure,
            rates_table=rates_table,
            result_figures=result_figures,
            result_table=result_table,
            has_many_sides=has_many_sides,
            overview=overview,
            refusals=refusals,
            side_figures=side_figures,
            tables_without_figure=tables_without_figure,
            machine_facts=machine_facts,
        )
        drawn = any(name.startswith(("f-", "s-")) for name in self._chunks.packed)
        digests = [_digest(script)]
        if drawn:
            self._chunks.packed["library"], of_library = _library()
            digests.append(of_library)
        text = self._environment.get_template("page.html").render(
            title=self._title(runs),
            policy=_policy(digests),
            style=Markup(style),
            script=Markup(script),
            body=Markup(body),
            chunks=[(name, Markup(packed)) for name, packed in self._chunks.packed.items()],
        )
        # JSON can hold halves of characters, in names of tests for instance; a file cannot.
        return text.encode(errors="replace").decode()

    def _run(self, number: int, document: Document) -> Run:
        run = Run(number, document, scenarios_of(document.content))
        template = self._environment.get_template("scenario.html")
        for place, scenario in enumerate(run.scenarios):
            opened = open_scenario(scenario)
            name = f"s-{number}-{place}"
            figures = [] if opened.timeline is None else [_drawn(opened.timeline)]
            html = template.render(opened=opened, scenario=scenario, id=name)
            self._chunks.add(name, {"html": html, "figures": figures, "waterfalls": opened.waterfalls()})
        return run

    def _figure(self, figure: Figure) -> str:
        """Keep a figure for the browser and return its id."""
        return self._chunks.add(f"f-{len(self._chunks.packed)}", _drawn(figure))

    def _compared(self) -> list[Compared]:
        named = [Named(each.name, each.result) for each in self._documents if each.result is not None]
        base = self._baseline
        if base is None:
            return comparisons(None, named, self._threshold)
        found = [replace(each, note=base.left_out) for each in comparisons(base.old, base.new, self._threshold)]
        return found + comparisons(None, named, self._threshold) if base.of_runs else found

    def _kernels(self) -> list[tuple[str, str]]:
        """Return which file is of which kernel if they are of several, else nothing."""
        documents = [each for each in self._documents if "machine" in each.content]
        found = [(each.name, str(each.content["machine"]["kernel"])) for each in documents]
        if self._baseline is not None:
            found.append((self._baseline.old.name, self._baseline.old.result.machine.kernel))
        return found if len({kernel for _, kernel in found}) > 1 else []

    def _title(self, runs: Sequence[Run]) -> str:
        return f"{runs[0].verdict} – reloadlab report" if runs else "reloadlab report"


def _by_kernel(runs: Sequence[Run]) -> ByKernel | None:
    """Return what each scenario came to on each kernel; a run over several machines has none of its own."""
    return by_kernel(
        [
            (
                run.document.name,
                str(run.content["machine"]["kernel"]),
                {scenario.name: scenario.outcome for scenario in run.scenarios},
            )
            for run in runs
            if len(run.content.get("machines", ())) < 2
        ]
    )


def machine_facts(result: Result) -> list[tuple[str, str]]:
    """Return what was measured where, as names and values; what the machine does not tell is left out."""
    machine = result.machine
    facts = [
        ("started", result.started),
        ("reloadlab", result.version),
        ("CPU", f"{machine.cpu_model}, {machine.cpus} CPUs"),
        ("governor", machine.governor),
        ("kernel", machine.kernel),
        ("clang", machine.clang),
        ("rounds", f"{result.course.rounds} after {result.course.warm_up} of warm-up"),
        ("other processes", "" if result.load.others is None else f"{result.load.others:.0%} of the CPUs"),
        *((f"option {name}", value) for name, value in result.options.items()),
        *(
            (f"{side or 'subject'}: {name}", value)
            for side, words in result.subjects.items()
            for name, value in words.items()
        ),
        *result.notes.items(),
    ]
    return [(name, value) for name, value in facts if value]


def _drawn(figure: Figure) -> dict[str, Any]:
    return {**figure.content, "height": figure.height}


def _pack(text: str) -> str:
    """Return a text as the browser unpacks it."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


@lru_cache(maxsize=1)
def _library() -> tuple[str, str]:
    """Return plotly.js, which the Python package carries, as the browser unpacks it, and its digest.

    Both are kept: it has four megabytes, and to pack it takes longer than the rest of many a page.
    """
    key = key_of(__name__, "plotly", version("plotly"), *_made_here())
    known = kept(key)
    if known is None:
        from plotly.offline import get_plotlyjs

        text = str(get_plotlyjs())
        known = f"{_digest(text)} {_pack(text)}".encode()
        keep(key, known)
    digest, packed = known.decode().split(" ")
    return packed, digest


class _Templates(BytecodeCache):
    """Keeps what Jinja has made of the templates."""

    def load_bytecode(self, bucket: Bucket) -> None:
        content = kept(self._key(bucket))
        if content is not None:
            bucket.bytecode_from_string(content)

    def dump_bytecode(self, bucket: Bucket) -> None:
        keep(self._key(bucket), bucket.bytecode_to_string())

    def _key(self, bucket: Bucket) -> str:
        return key_of(__name__, "jinja2", version("jinja2"), *_made_here(), bucket.key, bucket.checksum)


def _made_here() -> tuple[str, ...]:
    """Return what else decides about what is kept: the Python, and this module."""
    return sys.version, Path(__file__).read_text()


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _policy(digests: Sequence[str]) -> str:
    """Return a policy under which the scripts with these digests run and nothing is loaded."""
    hashes = " ".join(f"'sha256-{digest}'" for digest in digests)
    rest = "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {hashes}; {rest}"
