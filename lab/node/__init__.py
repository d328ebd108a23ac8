"""An emulated node: its topology as values, its links, its files and locks, what is there of it.

May import abi and system.
"""
