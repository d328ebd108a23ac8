"""What looks at a node without changing it: snapshots, invariants, metrics, maps, events, captures, system call times.

May import agent, traffic, node, abi and system.
"""
