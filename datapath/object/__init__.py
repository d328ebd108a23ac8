"""An object file as values: ELF, BTF, programs, maps, constants. Pure: needs no kernel and no privilege.

Imports no other room except base.
"""
