"""What every room may use: names and their checks, types of maps and programs, locks, state files, times.

Imports endpoint and errors only.
"""
