"""A loader that fails after a while: our pipeline, which loads every endpoint once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datapath.errors import ReloadlabError
from datapath.reload.step import Plan
from lab.loaders import pipeline


class Tired(pipeline.Pipeline):
    _loaded: frozenset[str] = frozenset()

    def plan(self, request: Mapping[str, Any]) -> Plan:
        if request["subject"] in self._loaded:
            raise ReloadlabError("it is tired")
        self._loaded |= {request["subject"]}
        return super().plan(request)


if __name__ == "__main__":
    pipeline.main(Tired)
