"""An object file as values: ELF, BTF, programs, maps, constants. Pure: no kernel, no privilege.

Imports no other room.
"""
