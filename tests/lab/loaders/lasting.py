"""Our pipeline as a loader that cannot remove what it has loaded."""

from __future__ import annotations

from lab.loaders import pipeline
from lab.loaders.protocol import UNLOAD


class Lasting(pipeline.Pipeline):
    supports = tuple(word for word in pipeline.Pipeline.supports if word != UNLOAD)


if __name__ == "__main__":
    pipeline.main(Lasting)
