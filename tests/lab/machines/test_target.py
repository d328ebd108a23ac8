"""What names a machine, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.machines.target import BadTarget, Target, check_different, parse_target


def test_machines_and_their_options(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.touch()
    assert parse_target("ssh:root@10.0.0.7") == Target("ssh", "root@10.0.0.7")
    assert parse_target(f"ssh:a,workers=3,port=2222,config={config}") == Target("ssh", "a", 3, 2222, config)
    assert parse_target(f"vagrant:new,directory={tmp_path}") == Target("vagrant", "new", directory=tmp_path)
    assert parse_target("ssh:[fe80::1%eth0],workers=1").label == "ssh:[fe80::1%eth0]"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("alpha", "names no machine: it is ssh:HOST or vagrant:NAME"),
        ("docker:alpha", "names no machine: it is ssh:HOST or vagrant:NAME"),
        ("ssh:", "'' is no name of a machine"),
        ("ssh:-oProxyCommand=evil", "is no name of a machine"),
        ("ssh:a b", "is no name of a machine"),
        ("ssh:a//b", "is no name of a machine"),
        ("ssh:a;reboot", "is no name of a machine"),
        ("ssh:a,workers=0", "workers=0 is no number from 1 to 1024"),
        ("ssh:a,workers=two", "workers=two is no number"),
        ("ssh:a,workers=1,workers=2", "'workers=2' is none of workers=, port=, config=, once each"),
        ("ssh:a,port=70000", "port=70000 is no number from 1 to 65535"),
        ("ssh:a,directory=/", "'directory=/' is none of"),
        ("ssh:a,config=/no/such", "/no/such: no such file"),
        ("vagrant:a,port=22", "'port=22' is none of workers=, directory="),
        ("vagrant:a,directory=/no/such", "/no/such: no such directory"),
    ],
)
def test_what_names_no_machine_is_told_in_one_line(text: str, told: str) -> None:
    with pytest.raises(BadTarget) as caught:
        parse_target(text)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_machine_is_named_once() -> None:
    with pytest.raises(BadTarget) as caught:
        check_different([parse_target("ssh:a"), parse_target("ssh:b"), parse_target("ssh:a,workers=2")])
    assert str(caught.value) == "ssh:a is named twice: for more scenarios at a time say ssh:a,workers=N"
