"""Numbered UDP and TCP traffic between endpoints, with exact accounting, in a separate process.

May import node, abi and system.
"""
