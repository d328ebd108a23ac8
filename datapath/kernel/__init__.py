"""The kernel interfaces, one module each: bpf(2), maps, pins, netlink, network namespaces, clsact hooks, routes.

May import base, endpoint and errors.
"""
