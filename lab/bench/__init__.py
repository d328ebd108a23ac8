"""Measurements, each beside another way of doing the same work. What they print is in cli.

May import watch, agent, traffic, node, abi and system; never scenario.
"""
