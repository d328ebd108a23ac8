from __future__ import annotations

import json

from lab.node.facts import decode, encode
from lab.node.topology import NodeSpec, PodSpec, plan_node


def test_json_gives_back_what_went_in() -> None:
    pods = (PodSpec("a"), PodSpec("b", identity=300, labels=frozenset({"k8s:app=x", "k8s:a=y"})))
    spec = NodeSpec("demo", pods=pods, endpoint_routes=True, tunnel=True, devices=("eth0",), mtu=9000, node_index=3)
    facts = plan_node(spec)
    assert decode(json.loads(json.dumps(encode(spec, facts)))) == (spec, facts)


def test_labels_are_sorted() -> None:
    spec = NodeSpec("demo", pods=(PodSpec("b", labels=frozenset({"z", "a", "m"})),))
    assert encode(spec, plan_node(spec))["spec"]["pods"][0]["labels"] == ["a", "m", "z"]
