"""What the command does before the command line is there."""

from __future__ import annotations

import subprocess
import sys

INTERRUPTED_WHILE_IT_STARTS = """
import sys

class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == "lab.cli.main":
            raise KeyboardInterrupt

sys.meta_path.insert(0, CtrlC())
from reloadlab.__main__ import main
sys.exit(main())
"""


def test_ctrl_c_while_the_command_starts_is_no_traceback() -> None:
    argv = [sys.executable, "-c", INTERRUPTED_WHILE_IT_STARTS]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "reloadlab: interrupted\n")
