from __future__ import annotations

import pytest

from datapath.base.names import check_ifname
from datapath.errors import InvalidName


def test_the_length_of_an_interface_name_is_that_of_its_bytes() -> None:
    assert check_ifname("bad\udcff") == "bad\udcff"
    assert check_ifname("x" * 14 + "\udcff") == "x" * 14 + "\udcff"
    for name in ("x" * 15 + "\udcff", "é" * 8, "\ud800"):
        with pytest.raises(InvalidName):
            check_ifname(name)
