"""A reload of which the traffic sees nothing."""

from __future__ import annotations

import os
import signal
import threading

from lab.scenario.scenario import Scenario


def starved(scenario: Scenario, cancel: threading.Event) -> None:
    """Reload a pod while the traffic does not run."""
    os.kill(scenario.traffic.pid, signal.SIGSTOP)
    try:
        scenario.agent.reload("pod-1", cancel=cancel)
    finally:
        os.kill(scenario.traffic.pid, signal.SIGCONT)
