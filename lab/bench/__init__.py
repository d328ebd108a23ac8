"""Benchmarks, each of which compares several ways to do the same work. Their output is printed by cli.

May import watch, agent, traffic, node, abi and system; never scenario.
"""
