from __future__ import annotations

import subprocess
import sys

import pytest

from datapath.kernel.helpers import Helper, is_known
from tests.lab.labs import ROOT

pytestmark = [pytest.mark.privileged, pytest.mark.usefixtures("no_descriptor_left")]

PROBE = "from datapath.kernel.helpers import Helper, is_known; print(is_known(Helper.KTIME_GET_COARSE_NS))"


def test_a_helper_is_known_if_programs_may_call_it() -> None:
    assert is_known(5), "bpf_ktime_get_ns, since Linux 4.1"
    assert not is_known(1 << 20)


def test_who_may_load_nothing_knows_no_helper() -> None:
    argv = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", PROBE]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


def test_every_helper_is_named_as_the_c_sources_name_it() -> None:
    header = (ROOT / "bpf/include/bpf/helpers.h").read_text()
    for helper in Helper:
        assert f" {helper.name.lower()}, void) = (void *){helper};" in header
