"""Proofs: what packets meet between any two system calls, and what is left where one fails or the process dies.

May import gates, scenario and what lies below them.
"""
