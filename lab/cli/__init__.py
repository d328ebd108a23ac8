"""The command line: parsing, naming labs and endpoints, tables. `commands/` has a module per command.

May import every other room; no other room imports it.
"""
