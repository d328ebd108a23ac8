"""What suites get that ask for the short names; the session that runs these tests is one of them."""

from __future__ import annotations

import gc


def test_what_is_collected_is_kept_from_the_garbage_collector() -> None:
    assert gc.get_freeze_count() > 0
