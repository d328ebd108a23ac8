"""The corpus: bugs as data, and the runner that holds the ordinary scenarios to noticing every one of them.

May import scenario, watch, agent, traffic, node, abi and system; never bench or cli.
"""
