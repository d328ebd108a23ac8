"""Checks the machine against the requirements of the lab, with one probe per requirement.

May import watch (tracing), node, abi and system.
"""
