"""Reloads of a scenario with a gate: in this process at steps, in one of its own at system calls."""

from __future__ import annotations

import errno
import threading

from datapath.errors import ReloadlabError
from datapath.reload.outcome import Outcome
from lab.agent.agent import Agent
from lab.agent.gated import under_gates
from lab.gates.call import Call
from lab.gates.supervisor import Answer, Fail
from lab.scenario.gate import Gate


def reload_at(gate: Gate | None, agent: Agent, subject: str, *, cancel: threading.Event | None = None) -> Outcome:
    """Reload a subject, and stop where the gate says. Raises what its function raised.

    At a call, the reload fails by that call's error (ECANCELED), and is rolled back as it does with any other.
    """
    if gate is None or not gate.at_calls:
        return agent.reload(subject, observer=gate, cancel=cancel)
    raised: list[BaseException] = []

    def decide(call: Call) -> Answer:
        if raised:
            return None
        try:
            with agent.at_gate_of(subject):
                gate.before_call(call)
        except BaseException as error:  # noqa: BLE001 - raised when the reload has come to its end
            raised.append(error)
            return Fail(errno.ECANCELED)
        return None

    try:
        outcome = under_gates(agent, lambda cancelled: agent.reload(subject, cancel=cancelled), decide, cancel=cancel)
    except ReloadlabError as error:
        if raised:
            raise raised[0] from error
        raise
    if raised:
        raise raised[0]
    return outcome
