"""Definitions shared with the C programs: layouts of maps and events, drop reasons, policy and connection entries.

May import system, and the names of macros from datapath.build.
"""
