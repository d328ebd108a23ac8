"""pytest within a test: the options that each such run of ours has."""

from __future__ import annotations

PYTEST = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")
"""Hypothesis has a plugin that imports all of it at the end of every run, which takes longer than many a run."""

SHORT_NAMES = (*PYTEST, "-p", "reloadlab.short_names")
"""The same, with the marks and fixtures under their short names."""
