"""When the packets of each flow were sent: a list that the engine keeps, and hands over as bytes when it ends."""

from __future__ import annotations

from array import array
from collections.abc import Sequence


class SendLog:
    """Times, nanoseconds of CLOCK_MONOTONIC, and the number of the flow in the order of all flows."""

    def __init__(self) -> None:
        self._times = array("Q")
        self._flows = array("H")

    def note(self, at_ns: int, flow: int) -> None:
        """Note that one or more packets of a flow are sent now."""
        self._times.append(at_ns)
        self._flows.append(flow)

    def pack(self) -> bytes:
        """Return the log as bytes, for `unpack`."""
        return self._times.tobytes() + self._flows.tobytes()


def unpack(data: bytes, names: Sequence[str]) -> dict[str, array[int]]:
    """Return by flow when its packets were sent, in order; `names` are those of all flows, in their order."""
    times, flows = array("Q"), array("H")
    count = len(data) // (times.itemsize + flows.itemsize)
    times.frombytes(data[: count * times.itemsize])
    flows.frombytes(data[count * times.itemsize :])
    found = {name: array("Q") for name in names}
    for at_ns, flow in zip(times, flows, strict=True):
        found[names[flow]].append(at_ns)
    return found
