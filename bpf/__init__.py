"""The C datapath. `LIBRARY` is the counterpart of Cilium's /var/lib/cilium/bpf; a checkout's bpf/ can replace it."""

from pathlib import Path

LIBRARY = Path(__file__).resolve().parent
