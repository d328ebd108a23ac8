"""Measurements, each beside another way of doing the same work, and their tables.

May import watch, agent, traffic, node, abi and system; never scenario.
"""
