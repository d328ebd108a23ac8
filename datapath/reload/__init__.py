"""A reload as data, and its application: steps, plans, the transaction with its rollback, the outcome, unloading.

May import build, load, object and kernel; never the loader, which keeps state between reloads.
"""
