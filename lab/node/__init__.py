"""An emulated node: its topology as values, its links, its files and locks, its current state.

May import abi and system.
"""
