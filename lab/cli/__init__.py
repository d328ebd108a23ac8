"""The command line: parsing, naming labs and endpoints, tables, completion. `commands/` has a module per command.

May import every other room; no other room imports it.
"""
