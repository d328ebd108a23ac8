"""Proofs: what packets meet between any two system calls of a reload.

May import gates, scenario and what lies below them.
"""
