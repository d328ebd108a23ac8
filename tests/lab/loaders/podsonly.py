"""Our pipeline as a loader of pods alone: the lab loads everything else itself."""

from __future__ import annotations

from lab.loaders import pipeline
from lab.loaders.protocol import HOST, OVERLAY


class PodsOnly(pipeline.Pipeline):
    supports = tuple(word for word in pipeline.Pipeline.supports if word not in (HOST, OVERLAY))


if __name__ == "__main__":
    pipeline.main(PodsOnly)
