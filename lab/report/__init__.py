"""What a run has found, for people to look at.

May import scenario, bench and what lies below them.
"""
