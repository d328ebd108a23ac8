"""Our pipeline as a loader of a release before tcx."""

from __future__ import annotations

from lab.loaders import pipeline
from lab.loaders.protocol import TCX


class TcOnly(pipeline.Pipeline):
    supports = tuple(word for word in pipeline.Pipeline.supports if word != TCX)


if __name__ == "__main__":
    pipeline.main(TcOnly)
