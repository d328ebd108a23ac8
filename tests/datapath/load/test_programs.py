from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from datapath.errors import BpfError
from datapath.load.collection import Collection
from datapath.object.reader import read_object

if TYPE_CHECKING:
    from tests.datapath.conftest import Compile

pytestmark = [pytest.mark.privileged, pytest.mark.usefixtures("no_descriptor_left")]

LONG = """
__section("from-container") int cil_long(struct __sk_buff *skb) {
    for (int i = 0; i < 20000; i++)
        asm volatile("" :: "r"(skb->len));
    return 0;
}
"""
"""The verifier follows every round of the loop, which takes it some milliseconds."""


@contextmanager
def interrupted() -> Iterator[None]:
    """Have this thread interrupted by a signal again and again, several times in a millisecond."""
    target, over = threading.get_ident(), threading.Event()

    def interrupt() -> None:
        while not over.wait(0.0001):
            signal.pthread_kill(target, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def test_a_verifier_that_signals_interrupt_has_refused_nothing(compile_c: Compile) -> None:
    """A profiler that stops the process does that: the program is in order."""
    spec = read_object(compile_c(LONG)).spec
    with Collection.load(spec, pin_dir=None) as loaded:
        assert set(loaded.programs) == {"cil_long"}
    with interrupted(), pytest.raises(BpfError) as raised:
        Collection.load(spec, pin_dir=None)
    assert raised.value.errno == errno.EAGAIN
    assert str(raised.value) == "BPF_PROG_LOAD: program cil_long: signals interrupted the verifier at every try"
