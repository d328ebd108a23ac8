"""One run over many machines: they are made ready over SSH, and pytest-xdist spreads the scenarios over them.

`remote.py` is sent to each machine and runs there by itself; `examine.py` and `worker.py` run there in the project's
environment. All else runs here.

May import what doctor and scenario may, and both.
"""
