from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lab.results.history import add, lineages, one_side
from lab.results.result import BadResult, Load, Result, Series, exact
from lab.system.output import BadDirectory
from tests.lab.results.samples import machine, result, times

START = datetime(2026, 1, 1, tzinfo=UTC)


def commit(number: int) -> str:
    return f"{number:02x}" * 20


def measured(number: int, *series: Series, **changes: Any) -> Result:
    """Return the result of a commit, measured a day after the one before."""
    started = (START + timedelta(days=number)).isoformat()
    subject = {"library": "our sources", "library sha256": commit(number), "commit": commit(number)}
    kept = series or (Series("reload", "s", times(number)), exact("size", "bytes", 7000))
    return result(*kept, **({"started": started, "subjects": {"": subject}} | changes))


def filled(directory: Path, results: Sequence[Result]) -> list[str]:
    return [add(directory, each).name for each in results]


def test_a_name_sorts_by_time_and_holds_the_commit(tmp_path: Path) -> None:
    later, earlier = filled(tmp_path / "new" / "history", [measured(2), measured(1)])
    assert earlier < later
    assert earlier.startswith("20260102T000000Z-010101010101-")
    assert earlier.rpartition("-")[2] == later.rpartition("-")[2], "the same machine and options"
    (lineage,) = lineages(tmp_path / "new" / "history")
    assert lineage.commits == (commit(1), commit(2))


def test_a_result_of_an_older_commit_takes_the_place_that_it_is_given(tmp_path: Path) -> None:
    filled(tmp_path, [measured(3), measured(5)])
    added = add(
        tmp_path, measured(9, subjects={"": {"commit": commit(4), "library": "our sources"}}), START + timedelta(4)
    )
    assert added.name.startswith("20260105T")
    assert lineages(tmp_path)[0].commits == (commit(3), commit(4), commit(5))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (name,) = filled(tmp_path, [measured(1)])
    before = (tmp_path / name).read_bytes()
    with pytest.raises(BadResult, match=f"{tmp_path} has this result already: {name}"):
        add(tmp_path, measured(1))
    # Another result of the same second, such as of a commit that is measured again, at the time of the commit.
    again = [add(tmp_path, replace(measured(number), seconds=7.0), START + timedelta(1)) for number in (1, 2)]
    assert [each.name.partition("-")[0] for each in again] == ["20260102T000001Z", "20260102T000000Z"]
    assert add(tmp_path, replace(measured(1), seconds=8.0)).name.startswith("20260102T000002Z-")
    assert len(list(tmp_path.iterdir())) == 4
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"machine": replace(machine(), kernel="5.10.0")}, "kernel: "),
        ({"options": {"pods": "9"}}, "option pods: 2, 9"),
        ({"bench": "traffic"}, "benchmark: reload, traffic"),
        (
            {"subjects": {"": {"library": "our sources", "attach": "tcx", "commit": commit(2)}}},
            "attach: not given, tcx",
        ),
    ],
    ids=["kernel", "options", "benchmark", "subject"],
)
def test_other_conditions_begin_a_series_of_their_own(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    filled(tmp_path, [measured(0), measured(1)])
    added = add(tmp_path, measured(2, **changes))
    assert added.begins
    assert [text for text in added.differences if text.startswith(said)]
    assert not add(tmp_path, measured(3, **changes)).begins
    assert not add(tmp_path, measured(4)).begins
    assert sorted(len(lineage.entries) for lineage in lineages(tmp_path)) == [2, 3]


def test_another_frequency_of_the_moment_is_the_same_machine(tmp_path: Path) -> None:
    filled(tmp_path, [measured(0), measured(1, machine=replace(machine(), frequency_mhz=1.0))])
    assert len(lineages(tmp_path)) == 1


def test_a_commit_that_was_measured_again_has_one_value(tmp_path: Path) -> None:
    again = measured(1, started=(START + timedelta(hours=30)).isoformat())
    series = [Series("reload", "s", (value,) * 6) for value in (1.0, 2.0, 4.0)]
    filled(
        tmp_path,
        [replace(each, series=(made,)) for each, made in zip((measured(0), measured(1), again), series, strict=True)],
    )
    (track,) = lineages(tmp_path)[0].tracks()
    assert (track.commits, track.values) == ((commit(0), commit(1)), (1.0, 3.0))


def test_results_of_one_commit_of_the_sources_differ_by_the_code_that_measured_them(tmp_path: Path) -> None:
    """As of a loader that changes while the C sources are those of a release."""
    for number in range(3):
        ours = {"reloadlab commit": commit(number), "reloadlab sha256": commit(number)}
        subject = {"library": "/src/cilium/bpf", "library sha256": "c", "commit": "v1.16.5"}
        filled(tmp_path, [measured(number, exact("n", "n", number), subjects={"": subject | ours})])
    (lineage,) = lineages(tmp_path)
    (track,) = lineage.tracks()
    assert track.values == (0, 1, 2)
    assert track.commits == ("v1.16.5 by 000000000000", "v1.16.5 by 010101010101", "v1.16.5 by 020202020202")


@pytest.mark.parametrize(
    ("subjects", "commits"),
    [
        ([{"commit": commit(n), "reloadlab commit": commit(n)} for n in (1, 2)], (commit(1), commit(2))),
        ([{"commit": commit(n), "reloadlab commit": commit(9)} for n in (1, 2)], (commit(1), commit(2))),
        ([{"commit": commit(n)} for n in (1, 2)], (commit(1), commit(2))),
        (
            [{"commit": commit(1), "reloadlab sha256": each * 64} for each in "ab"],
            tuple(f"{'01' * 6} by 0.1.0+{each * 12}" for each in "ab"),
        ),
        ([{"commit": "v1-dirty", "library sha256": each} for each in "ab"], ("v1-dirty", "v1-dirty")),
    ],
    ids=["our sources", "sources of others", "before", "installed", "changed files"],
)
def test_commits_are_told_apart(subjects: Sequence[dict[str, str]], commits: tuple[str, str], tmp_path: Path) -> None:
    filled(tmp_path, [measured(number, subjects={"": subject}) for number, subject in enumerate(subjects)])
    assert lineages(tmp_path)[0].commits == commits


def test_a_noisy_result_counts_only_where_chance_plays_no_part(tmp_path: Path) -> None:
    filled(tmp_path, [measured(0), measured(1, load=Load((9.0,), (9.0,), 0.6))])
    (lineage,) = lineages(tmp_path)
    assert lineage.noisy == 1
    assert [(track.name, track.commits) for track in lineage.tracks()] == [
        ("reload", (commit(0),)),
        ("size", (commit(0), commit(1))),
    ]


def test_a_side_becomes_a_result_of_its_own() -> None:
    series = [Series("reload", "s", times(1), side=side, group="rounds") for side in "AB"]
    whole = result(*series, sides=("A", "B"), bench="ab")
    kept = one_side(whole, "B", commit="v1.2")
    assert kept.subjects == {"": {"library": "our sources", "commit": "v1.2"}}
    assert [each.side for each in kept.series] == [""]
    with pytest.raises(BadResult, match="names no commit: name it with --commit"):
        one_side(whole, "A")
    with pytest.raises(BadResult, match=r"'\.\./x' is no name of a commit: letters"):
        one_side(whole, "A", commit="../x")


def test_a_result_of_no_sources_is_of_our_own_commit() -> None:
    ours = {"reloadlab commit": commit(1), "reloadlab sha256": commit(2)}
    found = one_side(measured(0, subjects={"": ours}, bench="topology"), "")
    assert found.subjects[""]["commit"] == commit(1)
    with pytest.raises(BadResult, match="names no commit"):
        one_side(measured(0, subjects={"": {"library": "/src", **ours}}), "")


def test_a_directory_that_is_no_history_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadResult, match=f"{tmp_path}/none: No such file or directory"):
        lineages(tmp_path / "none")
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(BadResult, match=f"{tmp_path} holds no results: "):
        lineages(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(BadDirectory, match="is a symbolic link"):
        add(tmp_path / "link", measured(1))
    (name,) = filled(tmp_path, [measured(1)])
    (tmp_path / name).write_text((tmp_path / name).read_text()[:-100])
    with pytest.raises(BadResult, match=f"{name} holds no result: not JSON"):
        lineages(tmp_path)
