"""The first reload of each kind stops between its steps, and again when the mode or the build is another."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from datapath.endpoint import DatapathConfig
from datapath.reload.step import Plan
from datapath.reload.switchover import Commit
from datapath.reload.workspace import Workspace
from lab.node.described import node_config
from lab.node.topology import NodeSpec, plan_node
from lab.scenario.flowpolicy import BadPolicyOption
from lab.scenario.scenario import Scenario
from lab.scenario.stepping import BadBursts, Bursts, Stepping

SPEC = NodeSpec("node", pods=2)
PLACE = Path("nowhere")
CONFIG = DatapathConfig(PLACE, PLACE, PLACE, PLACE, node_config(SPEC, plan_node(SPEC)))
OTHER_MODE = replace(CONFIG, node=replace(CONFIG.node, endpoint_routes=True))
OTHER_BUILD = replace(CONFIG, defines=(("POLICY_MAP_SIZE", "128"),))
OTHER_NODE = replace(CONFIG, state=Path("other"))


FIRST, LAST = Commit("first", (), ()), Commit("last", (), ())


def stepped(bursts: Bursts, *reloads: tuple[str, DatapathConfig], failing: Collection[int] = ()) -> list[bool]:
    """Tell for each of these reloads whether it stops between its steps; some fail before their last one."""
    stepping = Stepping(bursts, lambda: None)
    found = []
    for number, (subject, config) in enumerate(reloads):
        observer = stepping.observer(config, Plan(subject, 0, 1, (FIRST, LAST)))
        found.append(observer is not None)
        for step in (FIRST,) if number in failing else (FIRST, LAST):
            if observer is not None:
                # The workspace is nothing to a stepper.
                observer.after(step, cast(Workspace, None))
    return found


def test_the_first_of_each_kind() -> None:
    """A pod stands for all pods."""
    subjects = ("host", "pod-1", "pod-2", "health", "overlay", "host", "pod-1", "health", "overlay")
    assert stepped("first", *((subject, CONFIG) for subject in subjects)) == [
        *(True, True, False, True, True),
        *(False, False, False, False),
    ]


@pytest.mark.parametrize("config", [OTHER_MODE, OTHER_BUILD, OTHER_NODE], ids=["mode", "build", "node"])
def test_another_configuration_is_a_first_time(config: DatapathConfig) -> None:
    assert stepped("first", ("pod-1", CONFIG), ("pod-1", config), ("pod-2", config)) == [True, True, False]


def test_one_that_fails_is_not_the_first() -> None:
    """No packet has met what its later steps leave."""
    reloads = (("pod-1", CONFIG),) * 4
    assert stepped("first", *reloads, failing=(0, 1)) == [True, True, True, False]


def test_all_and_none() -> None:
    twice = (("host", CONFIG), ("host", CONFIG))
    assert stepped("all", *twice) == [True, True]
    assert stepped("none", *twice) == [False, False]


@pytest.mark.parametrize(
    ("option", "error", "words"),
    [
        ({"bursts": "some"}, BadBursts, "bursts is 'some', not one of first, all, none"),
        ({"policy": "open"}, BadPolicyOption, "policy is 'open', not 'flows' or None"),
    ],
)
def test_unknown_options_are_refused(option: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Scenario(SPEC, **option)
