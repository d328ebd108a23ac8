"""What the lab needs of Linux and Python without knowing a lab: processes, namespaces, signals, sockets, files.

Imports no other room of the lab.
"""
