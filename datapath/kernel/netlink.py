"""Netlink: messages are encoded once, patched at known offsets, and sent in batches from a raw socket.

The request path of a library such as pyroute2 costs about 2 ms for a filter, with the interpreter lock held; a patched
copy of the same bytes costs what the kernel costs.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from datapath.endpoint import Interface
from datapath.errors import LinkNotFound, NetlinkError, printable
from datapath.kernel.netns import enter

NLM_F_REQUEST, NLM_F_ACK, NLM_F_ECHO, NLM_F_DUMP = 0x1, 0x4, 0x8, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_CAPPED, NLM_F_ACK_TLVS, NLM_F_DUMP_INTR = 0x100, 0x200, 0x10
RTM_NEWLINK, RTM_GETLINK, RTM_SETLINK = 16, 18, 19
IFLA_ADDRESS, IFLA_IFNAME = 1, 3
_OF_INTERFACES = frozenset((IFLA_ADDRESS, IFLA_IFNAME))

_IFF_UP = 0x1
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK = 270, 10, 11, 12
_NLMSGERR_ATTR_MSG = 1
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_NLA_TYPE_MASK = 0x3FFF
_RECEIVE = 1 << 18
ANSWER_SECONDS = 30
"""How long to wait for the kernel, which answers at once unless the lock of its network configuration is held."""
DUMP_ATTEMPTS = 16
"""How often a dump is begun anew because what it lists changed meanwhile."""
_BATCH = 1 << 16  # bytes in one send: well below the default socket buffer


def pack_message(kind: int, body: bytes, flags: int = 0) -> bytes:
    """Return the bytes of a message of this type: a header, which is numbered when it is sent, and the body."""
    return _HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | flags, 0, 0) + body


def pack_attribute(number: int, value: bytes | memoryview) -> bytes:
    """Return an attribute as `attributes` reads it, filled up to four bytes."""
    return _ATTRIBUTE.pack(4 + len(value), number) + bytes(value) + bytes(-len(value) % 4)


class MessageTemplate:
    """An encoded message with holes.

    `holes` maps a name to the bytes that stand in the message where its value goes, which must occur exactly once.
    `fill` takes values of exactly that length, so no length field ever changes.
    """

    def __init__(self, message: bytes, holes: Mapping[str, bytes]) -> None:
        self._message = message
        self._holes: dict[str, tuple[int, int]] = {}
        for name, marker in holes.items():
            if message.count(marker) != 1:
                raise ValueError(f"marker of {name} occurs {message.count(marker)} times")
            self._holes[name] = (message.index(marker), len(marker))

    def fill(self, values: Mapping[str, bytes]) -> bytes:
        """Return a copy of the message with the given holes filled; the others keep their marker."""
        copy = bytearray(self._message)
        for name, value in values.items():
            offset, length = self._holes[name]
            if len(value) != length:
                raise ValueError(f"{name} takes {length} bytes, not {len(value)}")
            copy[offset : offset + length] = value
        return bytes(copy)


def attributes(data: bytes | memoryview, offset: int = 0) -> Iterator[tuple[int, memoryview]]:
    """Yield (type, payload) of the attributes that start at `offset`."""
    view = memoryview(data)
    end = len(view)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(view, offset)
        if length < 4:
            return
        yield kind & _NLA_TYPE_MASK, view[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def _some(data: bytes, offset: int, wanted: frozenset[int]) -> dict[int, memoryview]:
    """Return the attributes of the wanted types, as far as they are there; those behind them are not read."""
    found: dict[int, memoryview] = {}
    for kind, payload in attributes(data, offset):
        if kind in wanted:
            found[kind] = payload
            if len(found) == len(wanted):
                break
    return found


def text(payload: memoryview) -> str:
    """Return a NUL-terminated attribute as text; os.fsencode gives its bytes, whatever they are."""
    return os.fsdecode(bytes(payload).split(b"\0", 1)[0])


class NetlinkSocket:
    """A NETLINK_ROUTE socket that stays in the namespace in which it was opened. One thread at a time."""

    def __init__(self, netns: Path | None = None) -> None:
        with ExitStack() as stack:
            if netns is not None:
                stack.enter_context(enter(netns))
            # socket(2) inside the namespace is all that must happen there.
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", ANSWER_SECONDS, 0))
        # One buffer for all answers: socket.recv would allocate, and shrink, as much for each of them.
        self._buffer = bytearray(_RECEIVE)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def request(self, what: str, *messages: bytes) -> None:
        """Send messages in as few system calls as possible and wait until all are done.

        The kernel carries out every message, also those behind one that fails. NetlinkError tells the first failure;
        `what` names the request in it.
        """
        failure: NetlinkError | None = None
        for batch in _batches(messages):
            first = self._sequence + 1
            last = self._send(what, batch)
            for sequence, number, detail in self._acknowledgements(what, last):
                # An answer from before `first` is to a request that was interrupted, by Ctrl-C say.
                if number and failure is None and sequence >= first:
                    which = what if len(messages) == 1 else f"{what} (message {sequence - first + 1})"
                    failure = NetlinkError(which, number, detail)
        if failure is not None:
            raise failure

    def get(self, what: str, message: bytes) -> bytes:
        """Send one request that is answered by one message, and return that message with its header."""
        sequence = self._send(what, [message], acknowledge=False)
        for kind, number, body in self._receive(what):
            if number != sequence:
                continue
            if kind == NLMSG_ERROR:
                raise NetlinkError(what, *_error(body))
            return body
        raise AssertionError("unreachable: _receive never ends")

    def find(self, what: str, message: bytes) -> bytes | None:
        """Like `get`, for what the kernel may have no answer to: None then."""
        answer = None
        sequence = self._send(what, [message])
        for kind, number, body in self._receive(what):
            if number != sequence:
                continue
            if kind != NLMSG_ERROR:
                answer = body
            elif _errno(body):
                raise NetlinkError(what, *_error(body))
            else:
                return answer
        raise AssertionError("unreachable: _receive never ends")

    def dump(self, what: str, message: bytes) -> list[bytes]:
        """Send a dump request and return its messages with their headers.

        A dump during which the list changed is incomplete and begun anew; EINTR after DUMP_ATTEMPTS of them. One that
        was broken off, by an error or by Ctrl-C, is read to its end first: before, the kernel begins no other.
        """
        for _ in range(DUMP_ATTEMPTS):
            answers = self._dump_once(what, message)
            if answers is not None:
                return answers
        raise NetlinkError(what, errno.EINTR, f"the list changed during each of {DUMP_ATTEMPTS} attempts to read it")

    def _dump_once(self, what: str, message: bytes) -> list[bytes] | None:
        """Return the messages of a dump, None if it was interrupted."""
        answers: list[bytes] = []
        interrupted = False
        sequence = self._send(what, [message], acknowledge=False, flags=NLM_F_DUMP)
        for kind, number, body in self._receive(what):
            if number != sequence:
                continue
            interrupted |= bool(_HEADER.unpack_from(body)[2] & NLM_F_DUMP_INTR)
            if kind == NLMSG_ERROR and _errno(body) == errno.EBUSY:
                self._finish_dump(what)
                return None
            if kind == NLMSG_ERROR or (kind == NLMSG_DONE and _errno(body)):
                raise NetlinkError(what, *_error(body))
            if kind == NLMSG_DONE:
                break
            answers.append(body)
        return None if interrupted else answers

    def _finish_dump(self, what: str) -> None:
        """Read the dump that is under way to its end."""
        for kind, _, _ in self._receive(what):
            if kind == NLMSG_DONE:
                return

    def ifindex(self, ifname: str) -> int:
        """Return the index of an interface; LinkNotFound if there is none of this name."""
        name = os.fsencode(ifname) + b"\0"
        wanted = pack_message(RTM_GETLINK, bytes(16) + pack_attribute(IFLA_IFNAME, name))
        try:
            answer = self.get(f"look up {printable(ifname)}", wanted)
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise
            raise LinkNotFound(ifname) from error
        return int(struct.unpack_from("=i", answer, 20)[0])

    def interfaces(self) -> dict[str, Interface]:
        """Return every interface of the namespace by name."""
        found = {}
        for answer in self.dump("list interfaces", pack_message(RTM_GETLINK, bytes(16))):
            values = _some(answer, 32, _OF_INTERFACES)
            name, address = text(values[IFLA_IFNAME]), values.get(IFLA_ADDRESS)
            mac = ":".join(f"{byte:02x}" for byte in address) if address is not None and len(address) == 6 else None
            found[name] = Interface(name, int(struct.unpack_from("=i", answer, 20)[0]), mac)
        return found

    def _send(self, what: str, messages: Sequence[bytes], *, acknowledge: bool = True, flags: int = 0) -> int:
        """Number the messages, send them at once, return the last number. Only the last asks to be acknowledged."""
        out = bytearray()
        for message in messages:
            self._sequence += 1
            start = len(out)
            out += message
            out += bytes(-len(message) % 4)
            length, kind, given, _, _ = _HEADER.unpack_from(message)
            _HEADER.pack_into(out, start, length, kind, given & ~NLM_F_ACK | flags, self._sequence, 0)
            if acknowledge and message is messages[-1]:
                _HEADER.pack_into(out, start, length, kind, given | NLM_F_ACK | flags, self._sequence, 0)
        try:
            self._socket.send(out)
        except OSError as error:
            raise _named(what, error) from error
        return self._sequence

    def _receive(self, what: str) -> Iterator[tuple[int, int, bytes]]:
        while True:
            try:
                size = self._socket.recv_into(self._buffer)
            except OSError as error:
                raise _named(what, error) from error
            data = bytes(memoryview(self._buffer)[:size])
            offset = 0
            while offset + 16 <= len(data):
                length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
                yield kind, sequence, data[offset : offset + length]
                offset += (length + 3) & ~3

    def _acknowledgements(self, what: str, last: int) -> Iterator[tuple[int, int, str]]:
        for kind, sequence, body in self._receive(what):
            if kind == NLMSG_ERROR:
                yield (sequence, *_error(body))
            if sequence == last:
                return


def _named(what: str, error: OSError) -> NetlinkError:
    """Return an error of the socket as that of a request; no answer in time is ETIMEDOUT."""
    if isinstance(error, BlockingIOError):
        return NetlinkError(what, errno.ETIMEDOUT, f"the kernel gave no answer within {ANSWER_SECONDS} s")
    number = error.errno or 0
    return NetlinkError(what, number, os.strerror(number))


def _errno(message: bytes) -> int:
    """Return the error number of an NLMSG_ERROR or NLMSG_DONE message, 0 for none."""
    return -int(struct.unpack_from("=i", message, 16)[0]) if len(message) >= 20 else 0


def _error(message: bytes) -> tuple[int, str]:
    """Return (errno, words) of a message with an error; the words are the kernel's own where it gave some."""
    _, kind, flags, _, _ = _HEADER.unpack_from(message)
    number = _errno(message)
    if flags & NLM_F_ACK_TLVS:
        # NLMSG_ERROR quotes the request, or its header alone; NLMSG_DONE does not.
        quoted = 0
        if kind == NLMSG_ERROR:
            quoted = struct.unpack_from("=I", message, 20)[0] if not flags & NLM_F_CAPPED else 16
        for name, payload in attributes(message, 20 + ((quoted + 3) & ~3)):
            if name == _NLMSGERR_ATTR_MSG:
                return number, f"{os.strerror(number)} ({text(payload)})"
    return number, os.strerror(number)


def _batches(messages: Sequence[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for message in messages:
        if batch and size + len(message) > _BATCH:
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += len(message) + 3
    if batch:
        yield batch


def link_down(ifindex: int) -> bytes:
    """Return the message that sets an interface down."""
    return pack_message(RTM_SETLINK, struct.pack("=BxHiII", 0, 0, ifindex, 0, _IFF_UP))


def link_up(ifindex: int) -> bytes:
    """Return the message that sets an interface up."""
    return pack_message(RTM_SETLINK, struct.pack("=BxHiII", 0, 0, ifindex, _IFF_UP, _IFF_UP))


def unless(number: int, socket: NetlinkSocket, what: str, message: bytes) -> None:
    """Send a request that may find its work done already: this errno is no error."""
    try:
        socket.request(what, message)
    except NetlinkError as error:
        if error.errno != number:
            raise
