"""One C source to one BPF object: one clang, an atomic output, errors that carry the compiler's own words.

Flags and include order are those of pkg/datapath/loader/compile.go; the IR step through llc is left out, a single
clang call with a bpf target gives the same kind of object.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

from datapath.errors import Cancelled, CompileError, ToolMissing
from datapath.kernel.cpus import cpu_ids
from datapath.kernel.helpers import Helper, is_known

CLANG_VARIABLE = "RELOADLAB_CLANG"
"""Environment variable that names the compiler, as a path or as a name in PATH."""

PREFERRED_CLANG = "clang-16"

MCPUS = ("v3", "v2", "v1")
"""BPF instruction sets, the wanted one first. v3 is what Cilium takes from Linux 5.10 on (GetBPFCPU)."""

WARNING_FLAGS = (
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Wno-address-of-packed-member",
    "-Wno-unknown-warning-option",
    "-Wno-gnu-variable-sized-type-not-at-end",
    "-Wdeclaration-after-statement",
    "-Wimplicit-int-conversion",
    "-Wenum-conversion",
    # clang 19 made it a part of -Wimplicit-int-conversion; the sources are written for compilers where it is not.
    "-Wno-shorten-64-to-32",
)

WERROR_MAJORS = range(14, 20)
"""Compilers whose warnings we know. A warning that a newer one invents must not stop anybody's reload."""

DEFAULT_TIMEOUT = 600.0
"""Seconds. The largest real object takes 5 s on one free core; many of them share a few, and emulated ones are slow."""

_CANCEL_POLL = 0.05
_REMEMBERED = 4
"""Compilers whose answers a process keeps: to ask one takes longer than to load an object that is compiled."""

_CLANG_NAME = re.compile(r"clang-(\d+)")
_VERSION = re.compile(r"^.*clang version .*$", re.MULTILINE)
_MAJOR = re.compile(r"clang version (\d+)")
_WORD_OF_RULE = re.compile(r"(?:\\[ #\\]|\$\$|\S)+")
_ESCAPED = re.compile(r"\\([ #\\])|\$(?=\$)")
# Variables that would slip another include path or other flags into every compilation.
_FOREIGN_ENVIRONMENT = ("CPATH", "C_INCLUDE_PATH", "CCC_OVERRIDE_OPTIONS", "COMPILER_PATH", "DEPENDENCIES_OUTPUT")


@dataclass(frozen=True, slots=True)
class Compiler:
    """A clang that can compile for BPF. `version` is its own first line and part of every template's hash."""

    path: Path
    version: str
    mcpu: str = MCPUS[0]

    @property
    def major(self) -> int | None:
        found = _MAJOR.search(self.version)
        return int(found.group(1)) if found else None

    def identity(self) -> str:
        """Return what tells this compiler from all others, its file among it: one that was replaced is another.

        ToolMissing if it has gone since it was found.
        """
        try:
            stamp = _stamp(self.path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
            raise ToolMissing(str(self.path), "it was there before; install it again or name another one") from error
        return repr((str(self.path), *stamp, self.version, self.mcpu))

    def flags(self, *, werror: bool = False) -> tuple[str, ...]:
        """Return the flags that do not depend on the source; they say how many CPUs and which helpers the kernel has.

        `werror` asks for warnings as errors, and is heard only where the compiler's warnings are known (WERROR_MAJORS).
        """
        # Output and errors are the same wherever the caller stands: no working directory goes into the debug info.
        fixed = ("-O2", "--target=bpf", f"-mcpu={self.mcpu}", "-std=gnu89", "-nostdinc", "-g", "-fno-crash-diagnostics")
        strict = ("-Werror",) if werror and self.major in WERROR_MAJORS else ()
        helpers = tuple(f"-DHAVE_{helper.name}" for helper in Helper if is_known(helper))
        return (*fixed, *WARNING_FLAGS, *strict, f"-D__NR_CPUS__={cpu_ids()}", *helpers)


def find_clang(explicit: str | None = None) -> Path:
    """Return the compiler: `explicit`, else $RELOADLAB_CLANG, else clang-16, clang, or the newest clang-NN in PATH.

    A compiler that was named and is not there is ToolMissing; no other one is taken in its place.
    """
    for name, origin in ((explicit, "--clang"), (os.environ.get(CLANG_VARIABLE), CLANG_VARIABLE)):
        if name:
            return _which(name) or _missing(name, f"named by {origin}; install it or name another one")
    names = (PREFERRED_CLANG, "clang", *_numbered_clangs())
    found = next((path for path in map(_which, names) if path is not None), None)
    return found or _missing("clang", f"apt-get install {PREFERRED_CLANG} (or clang)")


def probe_compiler(explicit: str | None = None) -> Compiler:
    """Find clang and ask it for its version and for the newest BPF instruction set that it can emit.

    Raises ToolMissing where there is no clang, or one that was built without the BPF target.
    """
    clang = find_clang(explicit)
    try:
        stamp = _stamp(clang)
    except OSError:
        stamp = ()  # running it says what is wrong with it
    return _probed(clang, stamp)


@lru_cache(maxsize=_REMEMBERED)
def _probed(clang: Path, stamp: tuple[int, ...]) -> Compiler:
    """Ask a compiler; once in a process, as long as its stamp says that it is the same file."""
    complaint = ""
    for mcpu in MCPUS:
        # -v makes the compilation of an empty source print the version: one process answers both questions.
        argv = [str(clang), "-v", "--target=bpf", f"-mcpu={mcpu}", "-x", "c", "-c", os.devnull, "-o", os.devnull]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, env=_environment(), timeout=60.0, check=False)
        except OSError as error:
            raise ToolMissing(str(clang), f"it cannot be run: {error.strerror}") from error
        version = _VERSION.search(done.stderr)
        if done.returncode == 0 and version is not None:
            return Compiler(clang, version.group().strip(), mcpu)
        complaint = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
    raise ToolMissing(f"BPF target of {clang}", f"use a clang that has it, such as {PREFERRED_CLANG} ({complaint})")


def compile_source(
    source: Path,
    output: Path,
    *,
    includes: Sequence[Path] = (),
    defines: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    compiler: Compiler | None = None,
    werror: bool = False,
    timeout: float = DEFAULT_TIMEOUT,
    cancel: threading.Event | None = None,
    names: Mapping[Path, str] | None = None,
    read: set[Path] | None = None,
    confirm: Callable[[], None] | None = None,
) -> Path:
    """Compile `source` into the object `output` and return its path; `timeout` in seconds.

    The output appears whole or not at all: whatever happens, no partial object and no temporary file is left. An
    older object of that name survives a failure; who must not use it removes it first. `includes` are searched in
    their order, `defines` become -D options (an empty value gives -DNAME). Once `cancel` is set clang is killed.
    `names` are what directories are called in the object's debug information, which is the same then wherever they lie.
    The sources and headers that the compiler has read are added to `read`. `confirm` is called when the object is
    complete; if it raises, no output appears.

    Raises CompileError (refused source, missing source, full disk, killed compiler, timeout), Cancelled, ToolMissing.
    """
    compiler = compiler or probe_compiler()
    source, output = source.absolute(), output.absolute()
    pairs = defines.items() if isinstance(defines, Mapping) else defines
    options = [f"-D{name}={value}" if value else f"-D{name}" for name, value in pairs]
    argv = [str(compiler.path), *compiler.flags(werror=werror), *options]
    argv += [f"-I{directory.absolute()}" for directory in includes]
    argv += [f"-ffile-prefix-map={directory}={name}" for directory, name in (names or {}).items()]
    argv += ["-c", str(source)]
    if cancel is not None and cancel.is_set():
        raise Cancelled(f"compiling {output.name} was cancelled")
    if not source.is_file():
        raise CompileError(output.name, argv, f"error: no such source file: {source}")
    try:
        # A directory of its own: clang puts temporaries of its own beside the file named by -o.
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=scratch_prefix(output)) as scratch:
            unfinished, rule = Path(scratch) / output.name, Path(scratch) / "read.d"
            argv += [] if read is None else ["-MD", "-MT", "object", "-MF", str(rule)]
            _run_clang([*argv, "-o", str(unfinished)], output, Path(scratch), timeout, cancel)
            if read is not None:
                read.update(_prerequisites(rule.read_text(errors="surrogateescape")))
            if confirm is not None:
                confirm()
            unfinished.replace(output)
    except OSError as error:
        raise CompileError(output.name, argv, f"error: {error.filename or output}: {error.strerror}") from error
    return output


def place(output: Path, content: bytes) -> None:
    """Write an object that was compiled before; it appears whole or not at all. CompileError where there is no room."""
    try:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=scratch_prefix(output)) as scratch:
            unfinished = Path(scratch) / output.name
            unfinished.write_bytes(content)
            unfinished.replace(output)
    except OSError as error:
        raise CompileError(output.name, (), f"error: {error.filename or output}: {error.strerror}") from error


def _prerequisites(rule: str) -> tuple[Path, ...]:
    """Return the files that a rule for make names behind its colon."""
    words = _WORD_OF_RULE.findall(rule.partition(": ")[2].replace("\\\n", " "))
    return tuple(Path(_ESCAPED.sub(r"\1", word)) for word in words)


def scratch_prefix(output: Path) -> str:
    """Return how the temporary directories of a compilation into `output` begin: a killed process leaves one behind."""
    return f".{output.name}."


def _run_clang(
    argv: Sequence[str], output: Path, scratch: Path, timeout: float, cancel: threading.Event | None
) -> None:
    # Not tools.run: this one must be killable while it runs. A group of its own keeps the terminal's Ctrl-C for us.
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        cwd="/",
        env=_environment(TMPDIR=str(scratch)),
        process_group=0,
    )
    try:
        stderr = _wait(process, output, argv, timeout, cancel)
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stderr is not None:
            process.stderr.close()
    if process.returncode != 0:
        raise CompileError(output.name, argv, _explain(argv[0], process.returncode, stderr))


def _wait(
    process: subprocess.Popen[str], output: Path, argv: Sequence[str], timeout: float, cancel: threading.Event | None
) -> str:
    deadline = time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise CompileError(output.name, argv, f"error: {argv[0]} was killed after {timeout:g} s without a result")
        try:
            return process.communicate(timeout=left if cancel is None else min(left, _CANCEL_POLL))[1]
        except subprocess.TimeoutExpired:
            if cancel is not None and cancel.is_set():
                raise Cancelled(f"compiling {output.name} was cancelled") from None


def _explain(clang: str, returncode: int, stderr: str) -> str:
    """Return the compiler's output, with an "error:" line added where it died without writing one."""
    if "error:" in stderr:
        return stderr
    fate = f"exit code {returncode}"
    if returncode < 0:
        with suppress(ValueError):
            fate = f"killed by {signal.Signals(-returncode).name}"
    return f"{stderr.rstrip()}\nerror: {clang}: {fate}\n".lstrip()


def _environment(**extra: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _FOREIGN_ENVIRONMENT}
    return {**kept, "LC_ALL": "C", **extra}


def _stamp(clang: Path) -> tuple[int, ...]:
    """Return what tells one file from another of the same name."""
    info = os.stat(clang)
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


def _which(name: str) -> Path | None:
    found = shutil.which(name)
    return Path(found).absolute() if found else None


def _missing(tool: str, remedy: str) -> NoReturn:
    raise ToolMissing(tool, remedy)


def _numbered_clangs() -> list[str]:
    """Return the clang-NN in PATH, the newest first."""
    majors: set[int] = set()
    for directory in filter(None, os.environ.get("PATH", "").split(os.pathsep)):
        with suppress(OSError):
            majors.update(int(m.group(1)) for name in os.listdir(directory) if (m := _CLANG_NAME.fullmatch(name)))
    return [f"clang-{major}" for major in sorted(majors, reverse=True)]
