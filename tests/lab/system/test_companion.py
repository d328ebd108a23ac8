from __future__ import annotations

from pathlib import Path

import pytest

from lab.system.companion import Child, ChildError


def test_a_second_start_is_refused_and_orphans_nothing() -> None:
    with Child("lab.traffic.engine") as child:
        pid = child.pid
        with pytest.raises(ChildError, match="it runs already: a second start would orphan the first process"):
            child.start()
        assert child.pid == pid
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()
