"""Runs a command on another kernel: a virtual machine that boots it directly, with this machine's files as its own.

The guest's root is the host's, read-only over 9p, below a file system in memory: it has the same interpreter, compiler,
environment and checkout, and there is no image to build. What it writes is gone when it ends, but for one directory.

May import system.
"""
