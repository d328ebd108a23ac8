"""The reload pipeline: compile, load, migrate, attach, route, roll back. Knows no lab, no pod, no pytest."""
