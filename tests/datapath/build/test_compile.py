"""compile.py: one clang, an atomic output, one clear error for everything that can go wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from datapath.build import compile as compiling
from datapath.build.compile import CLANG_VARIABLE, Compiler, compile_source, find_clang, probe_compiler
from datapath.errors import Cancelled, CompileError, ToolMissing
from datapath.object.reader import read_object

PROGRAM = """
#include <answer.h>
__attribute__((section("classifier"), used)) int cil_answer(void *ctx) { (void)ctx; return ANSWER; }
char _license[] __attribute__((section("license"), used)) = "Dual BSD/GPL";
"""
# Long enough to be interrupted on any machine, and it never ends by itself.
ENDLESS = "#!/bin/sh\nexec sleep 600\n"


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return probe_compiler()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "include").mkdir()
    (tmp_path / "include/answer.h").write_text("#define ANSWER 42\n")
    path = tmp_path / "program.c"
    path.write_text(PROGRAM)
    return path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out/program.o"


def fake_clang(directory: Path, script: str, name: str = "clang-fake") -> Compiler:
    path = directory / name
    path.write_text(script)
    path.chmod(0o755)
    return Compiler(path, "clang version 16.0.0")


def assert_nothing_left(output: Path) -> None:
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("with_its_directory", [False, True])
def test_a_compiler_that_has_vanished_is_missing(tmp_path: Path, with_its_directory: bool) -> None:
    """Whoever asks what it is, because compiled objects are kept by that, gets the line of any missing tool."""
    directory = tmp_path / "bin"
    directory.mkdir()
    clang = fake_clang(directory, ENDLESS)
    assert str(clang.path) in clang.identity()
    clang.path.unlink()
    if with_its_directory:
        directory.rmdir()
        directory.touch()
    with pytest.raises(ToolMissing, match=f"^{clang.path} not found: it was there before; install it again or name"):
        clang.identity()


def test_compiles_an_object_and_nothing_else(source: Path, output: Path, compiler: Compiler) -> None:
    assert compile_source(source, output, includes=[source.parent / "include"], compiler=compiler) == output
    assert "cil_answer" in read_object(output).spec.programs
    assert list(output.parent.iterdir()) == [output]


def test_first_include_directory_shadows_the_next(source: Path, output: Path, compiler: Compiler) -> None:
    shadow = source.parent / "shadow"
    shadow.mkdir()
    (shadow / "answer.h").write_text("#define ANSWER 7\n")

    def code(includes: list[Path]) -> bytes:
        compile_source(source, output, includes=includes, compiler=compiler)
        return read_object(output).spec.programs["cil_answer"].insns

    assert b"\x07\0\0\0" in code([shadow, source.parent / "include"])
    assert b"\x2a\0\0\0" in code([source.parent / "include", shadow])


@pytest.mark.parametrize("defines", [{"ANSWER": "1"}, [("ANSWER", "1")], {"ANSWER": ""}], ids=["map", "pairs", "empty"])
def test_defines(
    source: Path, output: Path, compiler: Compiler, defines: dict[str, str] | list[tuple[str, str]]
) -> None:
    (source.parent / "include/answer.h").write_text("")
    compile_source(source, output, includes=[source.parent / "include"], defines=defines, compiler=compiler)
    assert b"\x01\0\0\0" in read_object(output).spec.programs["cil_answer"].insns


def test_the_object_does_not_depend_on_the_working_directory(
    source: Path, output: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    includes = [source.parent / "include"]
    compile_source(source, output, includes=includes, compiler=compiler)
    first = output.read_bytes()
    monkeypatch.chdir(source.parent)
    compile_source(Path(source.name), Path("out/program.o"), includes=[Path("include")], compiler=compiler)
    assert output.read_bytes() == first


def test_foreign_include_path_is_not_heard(
    source: Path, output: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CPATH", str(source.parent / "include"))
    with pytest.raises(CompileError, match=r"answer\.h"):
        compile_source(source, output, compiler=compiler)


def test_error_names_file_and_line_and_keeps_everything(source: Path, output: Path, compiler: Compiler) -> None:
    source.write_text("int one;\nint two(void) { return nothing; }\nint three(void) { return nobody; }\n")
    with pytest.raises(CompileError) as caught:
        compile_source(source, output, compiler=compiler)
    message = str(caught.value)
    assert f"{source}:2:24: error: " in message
    assert "nothing" in message
    assert "\n" not in message
    assert "nobody" in caught.value.stderr
    assert_nothing_left(output)


def test_failure_leaves_the_older_object(source: Path, output: Path, compiler: Compiler) -> None:
    output.write_bytes(b"older")
    source.write_text("#error no\n")
    with pytest.raises(CompileError):
        compile_source(source, output, compiler=compiler)
    assert output.read_bytes() == b"older"


def test_the_output_is_replaced_and_never_written_into(source: Path, output: Path, compiler: Compiler) -> None:
    output.write_bytes(b"older")
    with output.open("rb") as reader:
        compile_source(source, output, includes=[source.parent / "include"], compiler=compiler)
        assert reader.read() == b"older"
    assert "cil_answer" in read_object(output).spec.programs


def test_missing_source(source: Path, output: Path, compiler: Compiler) -> None:
    source.unlink()
    with pytest.raises(CompileError, match=r"no such source file: .*program\.c"):
        compile_source(source, output, compiler=compiler)


def test_missing_output_directory(source: Path, compiler: Compiler) -> None:
    with pytest.raises(CompileError, match="No such file or directory"):
        compile_source(source, source.parent / "nowhere/program.o", compiler=compiler)


def test_warning_is_an_error_only_on_request_and_only_where_it_is_known(
    source: Path, output: Path, compiler: Compiler
) -> None:
    source.write_text("static int unused;\n")
    compile_source(source, output, compiler=compiler)
    if compiler.major in compiling.WERROR_MAJORS:
        with pytest.raises(CompileError, match="unused"):
            compile_source(source, output, compiler=compiler, werror=True)
    newer = Compiler(compiler.path, "clang version 99.0.0", compiler.mcpu)
    compile_source(source, output, compiler=newer, werror=True)


def test_killed_compiler(source: Path, output: Path, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"clang-fake: killed by SIGKILL$"):
        compile_source(source, output, compiler=fake_clang(tmp_path, "#!/bin/sh\nkill -KILL $$\n"))
    assert_nothing_left(output)


def test_compiler_that_fails_without_a_word(source: Path, output: Path, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"clang-fake: exit code 3$"):
        compile_source(source, output, compiler=fake_clang(tmp_path, "#!/bin/sh\nexit 3\n"))


def test_timeout_kills_the_compiler(source: Path, output: Path, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"killed after 0\.2 s"):
        compile_source(source, output, compiler=fake_clang(tmp_path, ENDLESS), timeout=0.2)
    assert_nothing_left(output)


def test_cancel_kills_a_running_compiler_and_its_children(source: Path, output: Path, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    clang = fake_clang(tmp_path, f"#!/bin/sh\nsleep 600 &\necho $$ $! > {pids}.new\nmv {pids}.new {pids}\nwait\n")
    cancel = threading.Event()

    def cancel_when_running() -> None:
        deadline = time.monotonic() + 30
        while not pids.exists() and time.monotonic() < deadline:
            cancel.wait(0.01)
        cancel.set()

    canceller = threading.Thread(target=cancel_when_running)
    canceller.start()
    with pytest.raises(Cancelled, match=r"program\.o"):
        compile_source(source, output, compiler=clang, cancel=cancel)
    canceller.join()
    assert_nothing_left(output)
    for pid in pids.read_text().split():
        deadline = time.monotonic() + 10
        while _runs(pid):
            assert time.monotonic() < deadline, f"process {pid} of the cancelled compilation still runs"
            threading.Event().wait(0.01)


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_is_cancelled_before_it_begins_compiles_nothing(source: Path, output: Path, compiler: Compiler) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        compile_source(source, output, compiler=compiler, cancel=cancel)


@pytest.mark.privileged
def test_a_full_disk_leaves_nothing(source: Path, compiler: Compiler) -> None:
    # The file system is mounted in a mount namespace of its own and goes with it.
    script = (
        "import sys\nfrom pathlib import Path\nfrom datapath.build.compile import compile_source\n"
        "from datapath.errors import CompileError\n"
        "source, output = map(Path, sys.argv[1:])\n"
        "try:\n    compile_source(source, output, includes=[source.parent / 'include'])\n"
        "except CompileError as error:\n    print(error)\n    print(sorted(output.parent.iterdir()))\n"
    )
    disk = source.parent / "disk"
    disk.mkdir()
    large = source.parent / "large.c"
    large.write_text(PROGRAM + "char filler[1 << 20] = { 1 };\n")
    command = 'mount -t tmpfs -o size=64k none "$1" && exec "$2" -c "$3" "$4" "$1/program.o"'
    shell = ["sh", "-c", command, "sh", str(disk), sys.executable, script, str(large)]
    root = Path(compiling.__file__).parents[2]
    done = subprocess.run(["unshare", "-m", *shell], capture_output=True, text=True, cwd=root, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    message, left = done.stdout.splitlines()
    assert "failed to compile program.o" in message
    assert "No space left on device" in message
    assert left == "[]"


class TestFindClang:
    @pytest.fixture
    def bin(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        directory = tmp_path / "bin"
        directory.mkdir()
        monkeypatch.setenv("PATH", str(directory))
        monkeypatch.delenv(CLANG_VARIABLE, raising=False)
        return directory

    @pytest.mark.parametrize(
        ("present", "expected"),
        [
            (("clang-16", "clang", "clang-19"), "clang-16"),
            (("clang", "clang-19"), "clang"),
            (("clang-9", "clang-14", "clang-cpp-19"), "clang-14"),
        ],
        ids=["16-first", "then-plain", "then-newest"],
    )
    def test_order(self, bin: Path, present: tuple[str, ...], expected: str) -> None:
        for name in present:
            fake_clang(bin, "#!/bin/sh\n", name)
        assert find_clang() == bin / expected

    def test_variable_wins_over_path_and_argument_over_variable(
        self, bin: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("clang-16", "mine", "other"):
            fake_clang(bin, "#!/bin/sh\n", name)
        monkeypatch.setenv(CLANG_VARIABLE, "mine")
        assert find_clang() == bin / "mine"
        assert find_clang(str(bin / "other")) == bin / "other"

    def test_a_named_compiler_is_not_replaced(self, bin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_clang(bin, "#!/bin/sh\n", "clang-16")
        monkeypatch.setenv(CLANG_VARIABLE, "gone")
        with pytest.raises(ToolMissing, match=f"gone not found: named by {CLANG_VARIABLE}"):
            find_clang()

    def test_none(self, bin: Path) -> None:
        with pytest.raises(ToolMissing, match="clang not found: apt-get install clang-16"):
            find_clang()

    def test_probe_without_bpf_target(self, bin: Path) -> None:
        fake_clang(
            bin, '#!/bin/sh\necho "clang version 16.0.0" >&2\necho "error: no such target" >&2\nexit 1\n', "clang"
        )
        with pytest.raises(ToolMissing, match=r"BPF target of .*error: no such target"):
            probe_compiler()

    def test_probe_takes_the_newest_instruction_set_that_is_known(self, bin: Path) -> None:
        script = '#!/bin/sh\necho "Some clang version 9.0.1 (x)" >&2\ncase "$*" in *mcpu=v3*) exit 1;; esac\n'
        fake_clang(bin, script, "clang")
        assert probe_compiler() == Compiler(bin / "clang", "Some clang version 9.0.1 (x)", "v2")

    def test_a_compiler_is_asked_once_and_again_when_it_was_replaced(self, bin: Path) -> None:
        asked = bin / "asked"
        for version in ("16.0.0", "17.0.0"):
            fake_clang(bin, f'#!/bin/sh\necho x >> {asked}\necho "clang version {version}" >&2\n', "new")
            (bin / "new").replace(bin / "clang")
            assert [probe_compiler().version for _ in range(2)] == 2 * [f"clang version {version}"]
        assert asked.read_text() == "x\nx\n"


def test_probe_of_the_real_compiler(compiler: Compiler) -> None:
    assert compiler.mcpu == "v3"
    assert compiler.major is not None
    assert shutil.which(str(compiler.path)) is not None
    assert "-mcpu=v3" in compiler.flags()
