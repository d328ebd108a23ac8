"""Our pipeline as a loader that compiles by itself, with the host's firewall where it is asked for."""

from __future__ import annotations

from lab.loaders import pipeline
from lab.loaders.protocol import HOST_FIREWALL
from tests.lab.loaders.fileless import Fileless


class Compiling(Fileless):
    supports = (*Fileless.supports, HOST_FIREWALL)


if __name__ == "__main__":
    pipeline.main(Compiling)
