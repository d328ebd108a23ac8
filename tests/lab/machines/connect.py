"""For ssh's ProxyCommand with ProxyUseFdpass: start a server on one end of a socket, hand over the other end."""

from __future__ import annotations

import socket
import subprocess
import sys


def main() -> None:
    ours, theirs = socket.socketpair()
    with socket.socket(fileno=1) as ssh:
        subprocess.Popen(sys.argv[1:], stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.DEVNULL)
        socket.send_fds(ssh, [b"\0"], [ours.fileno()])


if __name__ == "__main__":
    main()
