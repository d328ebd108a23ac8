"""Whether tests that sample their cases take all of them."""

from __future__ import annotations

import os

EXHAUSTIVE = os.environ.get("RELOADLAB_EXHAUSTIVE", "") != ""
