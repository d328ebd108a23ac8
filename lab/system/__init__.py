"""Access to Linux and Python that knows no lab: processes, namespaces, signals, sockets, files.

Imports no other room of the lab.
"""
