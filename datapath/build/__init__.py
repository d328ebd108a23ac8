"""From C to an endpoint's object file: headers, macros, the compiler, templates compiled once per hash, substitution.

May import load, object and kernel.
"""
