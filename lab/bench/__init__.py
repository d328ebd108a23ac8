"""Benchmarks, each of which compares several ways to do the same work. `cli` prints their results.

May import watch, agent, traffic, node, abi and system; never scenario.
"""
