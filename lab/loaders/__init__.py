"""Loaders that are not ours: a process in the node that takes one request a line and answers one line.

May import system, abi, gates and node.
"""
