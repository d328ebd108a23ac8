"""Observers of a node: snapshots, invariants, counters, maps, events, captures, system calls. They do not change it.

May import agent, traffic, node, abi and system.
"""
