"""Two pods of a node of which only one may open connections: a node for each module that asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from lab.agent.agent import Agent
from tests.lab.conversations import CLIENT, Pods, loaded


@pytest.fixture(scope="module", params=[False, True], ids=["routes-off", "routes-on"])
def one_way(request: pytest.FixtureRequest) -> Iterator[Agent]:
    with loaded(endpoint_routes=request.param) as agent:
        # A port whose last connection the client has closed is free again at once.
        Pods(agent, 4, ExitStack()).sysctl(CLIENT, tcp_tw_reuse=1, tcp_tw_reuse_delay=1)
        yield agent


@pytest.fixture(params=[4, 6], ids=["v4", "v6"])
def pods(one_way: Agent, request: pytest.FixtureRequest) -> Iterator[Pods]:
    with ExitStack() as stack:
        yield Pods(one_way, request.param, stack)


@pytest.fixture
def both(one_way: Agent) -> Iterator[tuple[Pods, Pods]]:
    """Both families side by side, for what has to wait for a timer of TCP."""
    with ExitStack() as stack:
        yield Pods(one_way, 4, stack), Pods(one_way, 6, stack)
