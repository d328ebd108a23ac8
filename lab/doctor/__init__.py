"""What the machine has of what the lab needs, a probe each.

May import watch (tracing), node, abi and system.
"""
