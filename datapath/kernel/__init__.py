"""The kernel interfaces, a module each: bpf(2), maps, pins, netlink, network namespaces, clsact hooks, routes.

May import errors, names and endpoint.
"""
