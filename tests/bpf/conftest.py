"""Fixtures of the tests of the C programs: a pod's object, loaded, in either routing mode."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bpf.loaded import Datapath, loaded
from tests.bpf.pod import OFF, ON


@pytest.fixture
def off() -> Iterator[Datapath]:
    """A pod with endpoint routes off."""
    with loaded(OFF) as datapath:
        yield datapath


@pytest.fixture
def on() -> Iterator[Datapath]:
    """A pod with endpoint routes on."""
    with loaded(ON) as datapath:
        yield datapath
