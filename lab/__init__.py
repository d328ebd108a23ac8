"""The emulated node, and everything that watches it."""
