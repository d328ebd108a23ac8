"""An object file as values: ELF, BTF, programs, maps, constants. Pure: no kernel, no privilege.

May import kernel for the numbers of map and program types only.
"""
