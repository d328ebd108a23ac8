"""Our pipeline as a loader whose loads use the calls map of the load before, and that says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datapath.reload.prepare import RepinMaps
from datapath.reload.step import Plan
from lab.loaders import pipeline
from lab.loaders.protocol import OWN_CALLS_MAPS


class Sharing(pipeline.Pipeline):
    supports = tuple(word for word in pipeline.Pipeline.supports if word != OWN_CALLS_MAPS)

    def plan(self, request: Mapping[str, Any]) -> Plan:
        return super().plan(request).change(lambda step: None if isinstance(step, RepinMaps) else step)


if __name__ == "__main__":
    pipeline.main(Sharing)
