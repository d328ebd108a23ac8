"""The checks of a node's state, one module per topic. Each function yields the violations that it finds.

`lab.watch.invariants.check` calls all of them.
"""
