"""Our pipeline as a loader that compiles by itself and leaves no object files where the lab looks for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datapath.reload.step import Plan
from lab.loaders import pipeline
from lab.loaders.protocol import HOST_FIREWALL, NONE


class Fileless(pipeline.Pipeline):
    supports = tuple(word for word in pipeline.Pipeline.supports if word != HOST_FIREWALL)
    more: Mapping[str, Any] = {"compiles": True, "objects": NONE}

    def plan(self, request: Mapping[str, Any]) -> Plan:
        return self.usual_plan(request)


if __name__ == "__main__":
    pipeline.main(Fileless)
