"""Builds an endpoint's object file from C: headers, macros, the compiler, templates per hash, substitution.

May import load, object and kernel.
"""
