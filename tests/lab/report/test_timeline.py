"""timeline.py: reloads, steps, traffic and findings stand where they happened."""

from __future__ import annotations

from lab.report.figure import HELPER, PREPARE, ROLLBACK, STARVED, SWITCH, TRAFFIC
from lab.report.scenarios import scenarios_of
from lab.report.timeline import MOST_STEPS, timeline, waterfall
from tests.lab.report.samples import LOST, MS, START, losing, outcome, record, run

(LOSING,) = scenarios_of(run(losing()))


def test_steps_stand_in_the_row_of_their_subject_and_traffic_above() -> None:
    bars = timeline(LOSING.record, LOSING.reloads)
    assert bars.rows == ["traffic", "pod-1"]
    # The first event is the traffic's, a millisecond before the first reload.
    assert [(bar.row, bar.start, bar.length, bar.kind) for bar in bars.bars] == [
        (0, 0.0, 41.0, TRAFFIC),
        (0, 2.0, 1.0, STARVED),
        (1, 1.0, 1.0, PREPARE),
        (1, 3.0, 1.0, PREPARE),
        (1, 5.0, 1.0, SWITCH),
        (1, 7.0, 1.0, SWITCH),
        (1, 21.0, 1.0, PREPARE),
        (1, 23.0, 1.0, PREPARE),
        (1, 25.0, 1.0, SWITCH),
        (1, 27.0, 2.0, ROLLBACK),
    ]
    assert bars.counts == [(0.0, round(41 / 3, 3), [3, 0, 4])]


def test_a_lost_packet_stands_where_it_was_lost() -> None:
    assert timeline(LOSING.record, LOSING.reloads).marks == [(5.0, LOST), (5.5, LOST), (6.5, LOST)]
    steps = waterfall(LOSING.record, LOSING.reloads[0])
    assert steps.marks == [(4.0, LOST), (4.5, LOST), (5.5, LOST)]
    assert waterfall(LOSING.record, LOSING.reloads[1]).marks == []


def test_a_waterfall_has_a_row_for_each_step_and_the_rollback() -> None:
    steps = waterfall(LOSING.record, LOSING.reloads[1])
    assert steps.rows == ["compile bpf_lxc.c", "load programs bpf_lxc.o", "attach ingress lxc1", "rollback"]
    assert [(bar.row, bar.start, bar.kind) for bar in steps.bars if bar.kind != HELPER] == [
        (0, 0.0, PREPARE),
        (1, 2.0, PREPARE),
        (2, 4.0, SWITCH),
        (3, 6.0, ROLLBACK),
    ]
    assert steps.title == "pod-1, generation 3, failed"


def test_steps_of_the_same_name_have_rows_of_their_own() -> None:
    done = outcome().to_json()
    twice = {"node": 1, **done, "spans": [*done["spans"], *done["spans"][:1]]}
    (scenario,) = scenarios_of(run(record(reloads=(twice,))))
    assert waterfall(scenario.record, scenario.reloads[0]).rows[-1] == "compile bpf_lxc.c (2)"


def test_of_very_many_steps_the_time_line_has_whole_reloads() -> None:
    many = tuple(
        {"node": 1, **outcome(generation=at, start=START + at * 9 * MS).to_json()} for at in range(MOST_STEPS // 4 + 1)
    )
    (scenario,) = scenarios_of(run(record(reloads=many)))
    bars = [bar for bar in timeline(scenario.record, scenario.reloads).bars if bar.row]
    # Between two reloads are 2 ms, which is less than one would see of so long a time.
    assert [(bar.length, bar.text.partition(":")[0]) for bar in bars] == [
        (len(many) * 9.0 - 2, "751 reloads from pod-1, generation 0 to pod-1, generation 750")
    ]


def test_whole_reloads_with_a_gap_between_them_are_bars_of_their_own() -> None:
    times = [at * 9 * MS for at in range(MOST_STEPS // 4 + 1)] + [20_000 * MS]
    many = tuple({"node": 1, **outcome(generation=1, start=START + at).to_json()} for at in times)
    (scenario,) = scenarios_of(run(record(reloads=many)))
    bars = [bar for bar in timeline(scenario.record, scenario.reloads).bars if bar.row]
    assert [bar.start for bar in bars] == [1.0, 20_001.0]
    assert [bar.length for bar in bars] == [751 * 9.0 - 2, 7.0]


def test_subjects_of_several_nodes_are_told_apart() -> None:
    reloads = tuple({"node": node, **outcome().to_json()} for node in (1, 2))
    (scenario,) = scenarios_of(run(record(reloads=reloads)))
    assert timeline(scenario.record, scenario.reloads).rows == ["traffic", "1/pod-1", "2/pod-1"]
