from __future__ import annotations

from lab.vm.survey import Check, Survey


def test_a_survey_is_good_if_nothing_failed() -> None:
    good = Survey("6.1", "6.1.0", (Check("doctor", True),))
    assert good.good
    assert not Survey("6.1", "6.1.0", (Check("doctor", True), Check("up", False, "why"))).good
    assert not Survey("6.1", "6.1.0", (), failure="it hung").good
