"""Scenarios for suites: nodes under traffic, gates and faults at steps, checks at the end, and the pytest plugin.

The plugin keeps a record of every scenario. May import watch, agent, traffic, node, abi and system; never bench.
"""
