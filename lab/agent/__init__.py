"""The stand-in for Cilium's agent: fills maps, resolves policies, reloads endpoints, keeps options and generations.

May import traffic, node, abi and system.
"""
