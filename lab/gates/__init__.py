"""System calls as gates: a process is stopped before each call by which it changes the node, whatever it is written in.

May import system, abi and node.
"""
