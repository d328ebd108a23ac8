"""Loads a spec into the kernel: opens or creates maps, copies content, loads programs, fills program arrays.

May import object and kernel.
"""
