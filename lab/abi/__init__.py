"""Definitions shared with the C programs: layouts of maps and events, drop reasons, policy and connection entries.

May import system, and of datapath what a map's types need (kernel, object), and the names of macros (build).
"""
