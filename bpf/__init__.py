"""The C datapath. `LIBRARY` plays the role of Cilium's /var/lib/cilium/bpf; a checkout's bpf/ can take its place."""

from pathlib import Path

LIBRARY = Path(__file__).resolve().parent
