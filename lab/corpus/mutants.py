"""All mutants of the C programs."""

from __future__ import annotations

from lab.corpus.mutants_connection import CONNECTION_MUTANTS
from lab.corpus.mutants_host import HOST_MUTANTS
from lab.corpus.mutants_packet import PACKET_MUTANTS
from lab.corpus.mutants_pod import POD_MUTANTS

MUTANTS = (*POD_MUTANTS, *HOST_MUTANTS, *CONNECTION_MUTANTS, *PACKET_MUTANTS)
