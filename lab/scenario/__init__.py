"""What a test of a user's suite gets: nodes under traffic, gates and faults at steps, checks at the end; the pytest
plugin, and the records that it keeps of every scenario.

May import watch, agent, traffic, node, abi and system; never bench.
"""
