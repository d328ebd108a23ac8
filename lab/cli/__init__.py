"""The command line: parses arguments, resolves names of labs and endpoints, prints tables, completes words.

`commands/` has a module per command. May import every other room; no other room imports it.
"""
