"""From spec to kernel: maps opened or created, programs verified, program arrays filled, content copied.

May import object and kernel.
"""
