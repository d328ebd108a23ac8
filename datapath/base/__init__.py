"""Modules that every room may use: names and their checks, types of maps and programs, locks, state files, times.

Imports only endpoint and errors.
"""
