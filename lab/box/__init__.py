"""Builds boxes for Vagrant: a disk with Debian, one kernel and all that set-up asks for; and ends what Vagrant started.

Everything comes from the distribution's packages and the Python index; no loop device is used and nothing is mounted in
the host's own mount namespace.

May import system and vm.
"""
