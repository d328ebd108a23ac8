"""Numbered UDP and TCP traffic between endpoints with exact accounting, in a process of its own.

May import node, abi and system.
"""
