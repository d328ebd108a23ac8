from __future__ import annotations

import argparse

import pytest

from datapath.errors import InvalidName
from lab.agent.cluster import build, cluster_specs
from lab.cli.main import main
from lab.cli.targets import (
    EndpointWithoutLab,
    Target,
    check_targets,
    count,
    find_targets,
    near,
    number,
    parse_target,
    seconds,
)
from lab.errors import LabNotFound
from lab.node import registry
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.system.words import plural
from tests.lab.labs import removed, unique_name


@pytest.mark.parametrize(
    ("text", "parts"), [("demo", ("demo", None)), ("demo/pod-1", ("demo", "pod-1")), ("a-1/host", ("a-1", "host"))]
)
def test_target_is_a_lab_or_what_is_in_it(text: str, parts: tuple[str, str | None]) -> None:
    assert parse_target(text) == parts


@pytest.mark.parametrize("text", ["", "/", "demo/", "/pod-1", "a/b/c", "..", "../pod-1", "a b"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        parse_target(text)


def test_where_only_labs_are_taken_an_endpoint_is_refused() -> None:
    check_targets(["demo", "box"], endpoints=False)
    with pytest.raises(InvalidName, match="invalid lab name 'demo/pod-1': the command takes a whole lab, such as demo"):
        check_targets(["demo", "demo/pod-1"], endpoints=False)


@pytest.mark.privileged
def test_names_are_gathered_by_node_in_their_order() -> None:
    with removed(unique_name()) as name:
        Node.up(NodeSpec(name, pods=2))

        def found(*texts: str) -> list[tuple[str, tuple[str, ...]]]:
            return [(target.node.name, target.endpoints) for target in find_targets(texts)]

        assert found(name) == [(name, ())]
        assert found(f"{name}/pod-2", f"{name}/host", f"{name}/pod-2") == [(name, ("pod-2", "host", "pod-2"))]
        # All of a lab has its endpoints in it.
        assert found(f"{name}/pod-2", name) == [(name, ())]
        with pytest.raises(EndpointWithoutLab, match=f"no lab pod-1; an endpoint is named with its lab: {name}/pod-1"):
            find_targets([name, "pod-1"])
        with pytest.raises(LabNotFound, match="no lab pod-9"):
            find_targets([name, "pod-9"])
        with pytest.raises(LabNotFound, match=f"no lab {name[:-1]}; did you mean {name}"):
            find_targets([name[:-1]])


@pytest.mark.privileged
def test_name_of_a_cluster_stands_for_its_nodes() -> None:
    name = unique_name()[:29]
    try:
        build(cluster_specs(name, 2, pods=1))
        nodes = [f"{name}-1", f"{name}-2"]
        assert [target.node.name for target in find_targets([name])] == nodes
        both = find_targets([f"{name}/pod-1"])
        assert [(target.node.name, target.endpoint) for target in both] == [(node, "pod-1") for node in nodes]
        (second,) = find_targets([f"{name}-2"])
        assert (second.node.name, second.endpoint) == (nodes[1], None)
        assert isinstance(second, Target)
    finally:
        for member in registry.members(name):
            registry.remove(member, force=True)


def test_numbers() -> None:
    assert (count("3"), number("0"), number("-1")) == (3, 0, -1)
    for text in ("0", "-1", "two", "1.5", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number of at least 1"):
            count(text)
    with pytest.raises(argparse.ArgumentTypeError, match="'two' is not a whole number"):
        number("two")


@pytest.mark.parametrize("text", ["nan", "-1", "inf", "1e9", "soon", ""])
def test_a_command_that_ends_after_some_seconds_refuses_what_are_none(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would end at once, as if nothing had happened, or never."""
    assert main(["monitor", "nosuch", f"--seconds={text}"]) == 2
    assert f"{text!r} is not a number of seconds from 0 to 31536000" in capsys.readouterr().err
    assert (seconds("0"), seconds("1.5"), seconds("10", least=10, most=10)) == (0, 1.5, 10)


def test_near_word_is_named_only_if_one_is_near() -> None:
    assert near("ipcahe", ["ipcache", "lxc"]) == "; did you mean ipcache?"
    assert near("xyz", ["ipcache", "lxc"]) == ""


def test_plural() -> None:
    assert (plural(1, "pod"), plural(0, "pod"), plural(3, "pod")) == ("1 pod", "0 pods", "3 pods")
