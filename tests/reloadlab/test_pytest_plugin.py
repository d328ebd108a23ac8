"""The plugin as pytest loads it everywhere: names of its own, and words for wrong calls."""

from __future__ import annotations

import pytest

from tests.nested import PYTEST

pytest_plugins = ["pytester"]


def test_declares_names_of_its_own_alone(pytester: pytest.Pytester) -> None:
    shown = pytester.runpytest_subprocess("--markers", *PYTEST).stdout.str()
    for name in ("reloadlab_node(", "reloadlab_cluster(", "reloadlab_own_sources("):
        assert f"@pytest.mark.{name}" in shown
    for name in ("node", "cluster", "own_sources", "privileged"):
        assert f"@pytest.mark.{name}" not in shown


def test_fixtures_have_names_of_their_own(pytester: pytest.Pytester) -> None:
    shown = pytester.runpytest_subprocess("--fixtures", *PYTEST).stdout.str()
    found = [line.partition(" -- ")[0] for line in shown.splitlines() if "/reloadlab/" in line and " -- " in line]
    assert sorted(found) == ["reloadlab_cluster", "reloadlab_scenario"]


def test_short_names_load_the_plugin_where_entry_points_are_off(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    shown = pytester.runpytest_subprocess("--markers", "-p", "reloadlab.short_names").stdout.str()
    assert "@pytest.mark.reloadlab_node(" in shown
    assert "@pytest.mark.node(" in shown


@pytest.mark.parametrize("options", [("--reloadlab-define", "1=2"), ("--reloadlab-define=a b",)])
def test_wrong_option_is_one_line(pytester: pytest.Pytester, options: tuple[str, ...]) -> None:
    done = pytester.runpytest_subprocess(*PYTEST, *options)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in done.stderr.lines if line]
    assert line.startswith("ERROR: ")
    assert line.endswith("is not the name of a macro")
