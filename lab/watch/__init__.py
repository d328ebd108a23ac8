"""Observers of a node that do not change it: snapshots, invariants, counters, maps, events, captures, system calls.

May import agent, traffic, node, abi and system.
"""
