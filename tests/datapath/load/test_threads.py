from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

from datapath.load.threads import NoThread, VerifierThreads

CPUS = sorted(os.sched_getaffinity(0))


@pytest.fixture
def verifiers() -> Iterator[VerifierThreads]:
    with VerifierThreads() as pool:
        yield pool


@pytest.fixture
def on_first_cpu() -> Iterator[int]:
    """Bind the test's thread to one CPU."""
    os.sched_setaffinity(0, {CPUS[0]})
    yield CPUS[0]
    os.sched_setaffinity(0, CPUS)


def where() -> set[int]:
    return os.sched_getaffinity(0)


@pytest.mark.skipif(len(CPUS) < 2, reason="needs two CPUs")
def test_jobs_run_on_another_cpu_than_the_one_that_waits(verifiers: VerifierThreads, on_first_cpu: int) -> None:
    for _ in range(5):
        (cpu,) = verifiers.submit(where).result(timeout=10)
        assert cpu != on_first_cpu


def test_jobs_spread_over_the_threads(verifiers: VerifierThreads) -> None:
    together = threading.Barrier(len(CPUS))
    jobs = [verifiers.submit(together.wait, 10) for _ in CPUS]
    assert sorted(job.result(timeout=10) for job in jobs) == list(range(len(CPUS)))


def test_a_single_cpu_is_enough() -> None:
    with VerifierThreads(cpus=CPUS[:1]) as pool:
        assert [pool.submit(pow, 2, n).result(timeout=10) for n in range(4)] == [1, 2, 4, 8]
        assert pool.submit(where).result(timeout=10) == {CPUS[0]}


def test_an_error_is_the_waiters(verifiers: VerifierThreads) -> None:
    with pytest.raises(ZeroDivisionError):
        verifiers.submit(divmod, 1, 0).result(timeout=10)
    assert verifiers.submit(pow, 2, 3).result(timeout=10) == 8


def test_what_has_not_begun_can_be_cancelled() -> None:
    release, ran = threading.Event(), threading.Event()
    with VerifierThreads(cpus=CPUS[:1]) as pool:
        first = pool.submit(release.wait, 10)
        second = pool.submit(ran.set)
        assert second.cancel()
        release.set()
        assert first.result(timeout=10)
    assert not ran.is_set()


def test_shutdown_can_drop_what_has_not_begun() -> None:
    release, begun = threading.Event(), threading.Event()
    pool = VerifierThreads(cpus=CPUS[:1])

    def block() -> bool:
        begun.set()
        return release.wait(10)

    first = pool.submit(block)
    second = pool.submit(where)
    assert begun.wait(10)
    pool.shutdown(wait=False, cancel_futures=True)
    release.set()
    pool.shutdown()
    assert first.result(timeout=10)
    with pytest.raises(CancelledError):
        second.result(timeout=10)


def test_nothing_runs_after_the_end(verifiers: VerifierThreads) -> None:
    verifiers.submit(where).result(timeout=10)
    verifiers.shutdown()
    verifiers.shutdown()
    assert not [t for t in threading.enumerate() if t.name.startswith("verifier-") and not t.daemon]
    with pytest.raises(RuntimeError, match="shut down"):
        verifiers.submit(where)


def test_a_thread_that_cannot_be_started_is_no_more_than_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with VerifierThreads([min(os.sched_getaffinity(0))]) as verifiers:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            with pytest.raises(NoThread, match="no thread can be started to verify on CPU"):
                verifiers.submit(where)
            verifiers.stop_idle()
        assert verifiers.submit(lambda: 7).result(10) == 7


def test_stopping_ends_idle_threads_only_and_they_come_back() -> None:
    before = set(threading.enumerate())
    gate, begun = threading.Event(), threading.Event()

    def hold() -> int:
        begun.set()
        assert gate.wait(10)
        return threading.get_native_id()

    with VerifierThreads() as verifiers:
        held = verifiers.submit(hold)
        assert begun.wait(10)
        if len(os.sched_getaffinity(0)) > 1:
            verifiers.submit(int).result(10)
        verifiers.stop_idle()
        assert len(set(threading.enumerate()) - before) == 1
        gate.set()
        held.result(10)
        verifiers.stop_idle()
        assert set(threading.enumerate()) <= before
        assert verifiers.submit(lambda: 7).result(10) == 7
    assert set(threading.enumerate()) <= before


def test_threads_can_be_stopped_while_others_submit() -> None:
    """A thread that is started meanwhile must not take the end of the one that is being stopped."""
    go, finishing, gate = threading.Event(), threading.Event(), threading.Event()

    def finish(_: object) -> None:
        finishing.set()
        assert gate.wait(10)

    with VerifierThreads([min(os.sched_getaffinity(0))]) as verifiers:
        verifiers.submit(go.wait, 10).add_done_callback(finish)
        go.set()
        assert finishing.wait(10)
        stopper = threading.Thread(target=verifiers.stop_idle, daemon=True)
        stopper.start()
        stopper.join(0.2)
        late = verifiers.submit(lambda: 7)
        # Time for the new thread to take what is first in its queue.
        stopper.join(0.2)
        assert stopper.is_alive()
        gate.set()
        assert late.result(10) == 7
        stopper.join(10)
        assert not stopper.is_alive()
