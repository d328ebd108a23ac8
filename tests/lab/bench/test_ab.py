"""`bench ab`: sides are what their words say, and both are measured in lockstep."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import pytest

from bpf import LIBRARY
from datapath.base.timing import Interval
from datapath.endpoint import Attachment
from datapath.errors import ReloadlabError
from datapath.reload.outcome import Outcome, Span
from lab.agent.agent import Agent
from lab.bench.ab import FEWEST_ROUNDS, RELOADS, Reloads, enough
from lab.bench.sides import SIDES, BadSide, checked_out, parse_side
from lab.bench.undertraffic import reloads_under_traffic
from lab.cli.main import main
from lab.node import registry
from lab.results.result import BadResult, read_result
from lab.system.tools import run
from tests.lab.labs import ROOT, cli, start
from tests.lab.results.samples import times


def test_a_side_is_what_its_words_say() -> None:
    assert (parse_side("own").library, parse_side("own").defines) == (None, ())
    side = parse_side(f"library={LIBRARY} define=A=1 define=B attach=tcx loader=tc")
    assert (side.library, side.defines, side.attach) == (LIBRARY, (("A", "1"), ("B", "1")), Attachment.TCX)
    assert side.loader is not None
    assert side.loader.name == "tc"
    assert (parse_side("sleep=0.5").sleep, parse_side("sleep=0.5").subject()["sleep"]) == (0.0005, "0.5 ms")
    assert parse_side("git=HEAD~1").revision == "HEAD~1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "side '': it is empty; name own, or library=DIR, git=REVISION, "),
        ("mine", "side 'mine': mine is not library=DIR, git=REVISION, "),
        ("own define=A", "side 'own define=A': own is not library=DIR, "),
        ("library=", "side 'library=': library= is not library=DIR, "),
        ("sleep=-1", "side 'sleep=-1': sleep=-1 is not library=DIR, "),
        ("attach=xdp", "side 'attach=xdp': attach=xdp is not library=DIR, "),
        ("define='A", 'side "define=\'A": No closing quotation'),
        ("define=1A", "'1A' is not the name of a macro"),
        ("library=/etc", "/etc holds no bpf_lxc.c"),
        ("loader=no-such-loader", "no loader no-such-loader"),
        (f"library={LIBRARY} git=HEAD", "a library or a revision, not both"),
    ],
)
def test_words_that_are_no_side_are_one_line(text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ReloadlabError) as caught:
        parse_side(text)
    assert said in str(caught.value)
    assert main(["bench", "ab", "own", text]) == 2
    assert capsys.readouterr().err == f"reloadlab: {caught.value}\n"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--precision=0", "'0' is not a percentage such as 1%"),
        ("--threshold=much", "'much' is not a percentage such as 1%"),
        ("--max-time=0", "'0' is not a whole number of at least 1"),
        ("--trials=-1", "'-1' is not a whole number of at least 0"),
        ("--seed=-1", "'-1' is not a whole number of at least 0"),
        ("--tree=/usr/src", "--tree is for revisions: with git=REVISION"),
    ],
)
def test_options_that_make_no_sense_are_one_line(option: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "ab", "own", "own", option]) == 2
    assert said in capsys.readouterr().err


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with C sources in a directory of it, in two revisions, and a change that is in none."""
    root = tmp_path_factory.mktemp("repository")
    git = ["git", "-C", str(root), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    run([*git, "init", "--quiet"])
    (root / "bpf").mkdir()
    for number in (1, 2):
        (root / "bpf/bpf_lxc.c").write_text(f"int revision = {number};\n")
        (root / "bpf/link.h").unlink(missing_ok=True)
        (root / "bpf/link.h").symlink_to("bpf_lxc.c")
        run([*git, "add", "."])
        run([*git, "commit", "--quiet", "-m", str(number)])
    (root / "bpf/bpf_lxc.c").write_text("int changed;\n")
    return root / "bpf"


def test_a_revision_is_checked_out_beside_the_tree(tree: Path) -> None:
    before = {path: path.read_bytes() for path in tree.parent.rglob("*") if path.is_file()}
    with ExitStack() as stack:
        first, second = (checked_out(stack, parse_side(f"git={name}"), tree) for name in ("HEAD~1", "HEAD"))
        assert first.library is not None
        assert second.library is not None
        assert (first.library / "bpf_lxc.c").read_text() == "int revision = 1;\n"
        assert (second.library / "link.h").read_text() == "int revision = 2;\n"
        subject = first.subject()
        commit = run(["git", "-C", str(tree), "rev-parse", "HEAD~1"]).strip()
        assert (subject["commit"], "library" in subject) == (commit, False)
        assert subject["library sha256"] != second.subject()["library sha256"]
    assert not first.library.exists()
    assert {path: path.read_bytes() for path in tree.parent.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("revision", "where", "said"),
    [
        ("nothing", ".", "nothing is no revision of the repository of "),
        ("--help", ".", "--help is not a revision"),
        ("HEAD", "..", "the tree of HEAD holds no bpf_lxc.c"),
        ("HEAD", "/", "fatal: not a git repository"),
        ("HEAD", "/none", "fatal: cannot change to '/none'"),
    ],
)
def test_a_revision_that_is_none_is_one_line(tree: Path, revision: str, where: str, said: str) -> None:
    with ExitStack() as stack, pytest.raises(BadSide) as caught:
        checked_out(stack, parse_side(f"git={revision}"), tree / where)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_precision_is_looked_at_now_and_then() -> None:
    sides = [list(times(seed, rounds=60)) for seed in (1, 2)]
    stops = [n for n in range(1, 60) if enough([side[:n] for side in sides], 0.01)]
    assert stops[0] >= FEWEST_ROUNDS
    assert not enough([side[: stops[0] + 1] for side in sides], 0.01)
    assert not enough([side[: stops[0]] for side in sides], 1e-6)


@pytest.mark.privileged
def test_both_sides_are_measured_in_lockstep_and_compared(tmp_path: Path) -> None:
    """What a macro adds to the programs is exact, and found whatever the machine does meanwhile."""
    path = tmp_path / "ab.json"
    options = ["--max-time", "1", "--seed", "5", "--out", str(path), "--json"]
    process = start(cli("bench", "ab", "own", "define=ENABLE_HOST_FIREWALL sleep=200", *options))
    out, err = process.communicate(timeout=150)
    # Too few rounds to say anything of the reload; what is exact is worse all the same.
    assert process.returncode == 1
    assert re.fullmatch(r"reloadlab: A, B: not comparable: reload: \d of the 6 rounds that are needed\n", err)
    assert json.loads(out) == json.loads(path.read_text())
    result = read_result(path)
    assert [subject.get("defines") for subject in result.subjects.values()] == [None, "ENABLE_HOST_FIREWALL=1"]
    a, b = (result.of_side(side) for side in "AB")
    assert len(a["reload"].values) == (result.course.rounds + result.course.warm_up) * RELOADS
    # Chance decides who begins, and has decided both ways.
    assert set(a["reload"].positions) == {0, 1}
    assert {one + other for one, other in zip(a["reload"].positions, b["reload"].positions, strict=True)} == {1}
    for name in ("reload", "CPU time", "step: load programs"):
        assert len(a[name].values) == len(b[name].values)
        assert min(*a[name].values, *b[name].values) > 0
    assert min(b["reload"].values) > 0.2
    for name in ("user time", "system time"):
        assert len(a[name].values) == len(b[name].values) == len(a["reload"].values) / RELOADS
        assert min(*a[name].values, *b[name].values) >= 0
        assert max(a[name].values) > 0
    entry = "verified instructions: cil_to_container"
    assert a[entry].values < b[entry].values
    for name in ("verifier states: cil_to_container", "verifier states, peak: cil_to_container", "object: size"):
        assert a[name].exact
        assert a[name].values < b[name].values
    # And the same again, from the file.
    compared = start(cli("compare", str(path), "--json"))
    told, err = compared.communicate(timeout=60)
    rows = {row["name"]: row for row in json.loads(told)["comparisons"][0]["metrics"]}
    assert (compared.returncode, rows[entry]["verdict"]) == (1, "worse")
    assert not any(registry.lab_root(f"bench-ab-{side}").exists() for side in "ab")


def test_a_step_that_some_reloads_do_not_have_is_of_the_rounds_like_all_others() -> None:
    """Without it, single reloads would count as rounds, and those of the warm-up as well."""
    reloads = Reloads()
    for number in range(3 * RELOADS):
        steps = ("load programs", "migrate maps") if number < RELOADS else ("load programs",)
        spans = tuple(Span(step, "x", Interval(1, 0, 10**6), ()) for step in steps)
        reloads.outcomes.append(Outcome("pod-1", 1, number, (), (), (), spans))
        for each in (reloads.seconds, reloads.user, reloads.system):
            each.append(0.001)
        reloads.positions.append(0)
    found = {series.name: series for series in reloads.series("A", external=False)}
    rare = found["step: migrate maps"]
    assert (rare.group, rare.block) == (found["reload"].group, RELOADS)
    assert rare.values == (0.001,) * RELOADS + (0.0,) * (2 * RELOADS)


SLOWED = '            said = {"ok": True, **answer(request)}\n'


@pytest.mark.privileged
def test_two_versions_of_our_own_loader_are_compared_as_processes(tmp_path: Path) -> None:
    """The recipe of docs/benchmarks.md: the change is a copy of our code whose loader waits for half a second."""
    for name in ("bpf", "datapath", "lab", "reloadlab"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    changed = tmp_path / "lab/loaders/serving.py"
    assert SLOWED in changed.read_text()
    wait = '            __import__("time").sleep(0.5 * (request["request"] == "reload"))\n'
    changed.write_text(changed.read_text().replace(SLOWED, wait + SLOWED))
    ours, path = f"{Path(sys.executable).with_name('reloadlab')} loader", tmp_path / "ab.json"
    theirs = f"env PYTHONPATH={tmp_path} {ours}"
    sides = [f"loader='{command}'" for command in (ours, theirs)]
    process = start(cli("bench", "ab", *sides, "--max-time", "1", "--out", str(path)))
    out, err = process.communicate(timeout=170)
    assert process.returncode == 3, err
    assert "reload" in out, err
    result = read_result(path)
    a, b = (result.of_side(side)["reload"].values for side in "AB")
    # A busy machine may hold up one of them for as long.
    assert median(a) < 0.5 < min(b)
    # What a loader prepares by itself is no step of ours.
    assert not any(series.name.startswith("step: ") for series in result.series)
    assert result.subjects["B"]["loader"] == theirs


class Refused(ReloadlabError):
    pass


def refuse(stack: ExitStack, number: int) -> Agent:
    raise Refused(f"side {number} cannot")


def test_a_side_that_does_not_run_under_traffic_says_why() -> None:
    found = reloads_under_traffic(SIDES, refuse, 2, random.Random(1), lambda text: None)
    assert [(each.side, each.values, each.refusal) for each in found] == [
        ("A", (), "side 0 cannot"),
        ("B", (), "side 1 cannot"),
    ]


@pytest.mark.privileged
def test_everything_is_reloaded_under_traffic_if_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "ab.json"
    process = start(cli("bench", "ab", "own", "own", "--max-time", "1", "--trials", "1", "--out", str(path)))
    _, err = process.communicate(timeout=170)
    assert process.returncode in (1, 3), err
    result = read_result(path)
    assert result.options["trials"] == "1"
    for side in "AB":
        found = result.of_side(side)
        assert found["lost: all is reloaded"].values == (0.0,)
        assert found["lost: all is reloaded"].exact
        assert found["worst delay: all is reloaded"].values[0] > 0
        assert (len(found["traffic without CPU: all is reloaded"].values), found["reload"].refusal) == (1, "")


@pytest.mark.privileged
def test_a_killed_run_leaves_a_file_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "ab.json"
    with start(cli("bench", "ab", "own", "own", "--out", str(path))) as process:
        deadline = time.monotonic() + 60
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    with pytest.raises(BadResult, match="cut short: measure again"):
        read_result(path)
