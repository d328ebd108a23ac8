"""Time-outs of pytest-timeout on a slow machine: what bounds a scenario must not end it only because all takes longer.

A scenario may take as many times longer as the machine is slower than others (`lab.system.pace`); tests without a node
keep their time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import pytest

from lab.system.pace import slowness

_PLUGIN = "timeout"
_VARIABLE = "PYTEST_TIMEOUT"


def give_time(config: pytest.Config, scenarios: Iterable[pytest.Item]) -> None:
    """Scale the time-outs of scenarios: that of their mark, or the one of all tests. Without one, nothing is done."""
    slow = slowness()
    if slow == 1 or not config.pluginmanager.hasplugin(_PLUGIN):
        return
    for item in scenarios:
        mark = item.get_closest_marker("timeout")
        arguments, options = (mark.args, dict(mark.kwargs)) if mark is not None else ((), {})
        given = options.pop("timeout", arguments[0] if arguments else None)
        seconds = _of_all(config) if given is None else float(given)
        if seconds > 0:
            item.add_marker(pytest.mark.timeout(seconds * slow, *arguments[1:], **options), append=False)


def _of_all(config: pytest.Config) -> float:
    """Return the seconds for every test, 0 for no limit, from where pytest-timeout takes them, in its order."""
    places = (config.getoption(_PLUGIN), os.environ.get(_VARIABLE), config.getini(_PLUGIN))
    return float(next((place for place in places if place not in (None, "")), 0))
