"""The cache of templates: one compilation for all endpoints whose programs differ in constants and names only.

It follows pkg/datapath/loader/cache.go: N callers of one hash make one clang, between threads and between processes.

What is compiled here may have been compiled for another node before: `DatapathConfig.object_cache`.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

from bpf import LIBRARY
from datapath.base.locks import DirectoryLock, acquire_thread_lock
from datapath.base.timing import VerifyTimes
from datapath.build.compile import DEFAULT_TIMEOUT, Compiler, compile_source, place, scratch_prefix
from datapath.build.objectcache import ObjectCache
from datapath.build.requests import Request, Requests
from datapath.build.template import Fetched, Kind, Origin, Template
from datapath.endpoint import DatapathConfig, Endpoint
from datapath.errors import CompileError, ObjectError
from datapath.object.reader import ObjectImage, read_object

_ATTEMPTS = 3
"""How often a template's directory may vanish, or the sources change, under a compilation before that is an error."""

_REMEMBERED = 16
"""Objects that a process keeps parsed for caches that it makes later, of other nodes say; one takes some megabytes."""


class _SourcesChanged(Exception):
    """The compiler may have read other sources than those of the hash: its object, or its verdict, is of no use."""


@dataclass(slots=True)
class _Slot:
    """What this process knows about one hash. All but `lock` is read and written under `lock`."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    template: Template | None = None
    stamp: tuple[int, ...] = ()
    failures: int = 0
    failure: CompileError | None = None


class TemplateCache:
    """Fetches templates, compiling what is missing. Safe for many threads and for many processes on one directory.

    `werror` makes warnings errors; by default that is so for our own sources only. `on_compile` is called, in the
    compiling thread, before each clang.
    """

    def __init__(
        self,
        config: DatapathConfig,
        *,
        compiler: Compiler | None = None,
        werror: bool | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        on_compile: Callable[[Kind, str], None] | None = None,
    ) -> None:
        self._config = config
        self._requests = Requests(config, compiler, werror=config.library == LIBRARY if werror is None else werror)
        self._timeout = timeout
        self._on_compile = on_compile
        self._lock = threading.Lock()
        self._slots: dict[str, _Slot] = {}

    @property
    def directory(self) -> Path:
        return self._config.templates

    @property
    def images(self) -> tuple[ObjectImage, ...]:
        """The objects of the templates that this process has read."""
        templates = [slot.template for slot in list(self._slots.values())]
        return tuple(template.image for template in templates if template is not None)

    def update(self, config: DatapathConfig) -> None:
        """Take another configuration: from now on hashes are those of its node and its defines (objectCache.Update)."""
        self._config = config
        self._requests.update(config)

    def inherited(self) -> TemplateCache:
        """Return a cache for a forked process that knows these templates, whoever held their locks at the fork."""
        cache = copy(self)
        cache._lock = threading.Lock()
        cache._requests = self._requests.inherited()
        cache._slots = {
            name: _Slot(template=slot.template, stamp=slot.stamp) for name, slot in list(self._slots.items())
        }
        return cache

    def clear(self) -> None:
        """Remove all templates, as an agent does when it starts (RestoreTemplates). No reload may be under way."""
        with self._lock:
            self._slots.clear()
        with suppress(FileNotFoundError):
            shutil.rmtree(self.directory)

    def hash(self, endpoint: Endpoint) -> str:
        """Return the hash of the template that `endpoint` needs; nothing is compiled."""
        return self._requests.endpoint(endpoint).hash

    def fetch(self, endpoint: Endpoint, *, cancel: threading.Event | None = None) -> Template:
        """Return the template of `endpoint`, compiled if it is not there.

        Raises CompileError, Cancelled (once `cancel` is set, while waiting too), ToolMissing, ObjectError. A caller
        that waited for a compilation that failed gets the same error and does not compile again.
        """
        return self.fetch_timed(endpoint, cancel=cancel).template

    def fetch_overlay(self, *, cancel: threading.Event | None = None) -> Template:
        """Return the object of the tunnel device: compiled like a template, its calls map named at compile time."""
        return self.fetch_overlay_timed(cancel=cancel).template

    def fetch_xdp(self, *, cancel: threading.Event | None = None) -> Template:
        """Return the template of the objects that devices have at XDP."""
        return self._fetch(self._requests.xdp, cancel).template

    def fetch_timed(self, endpoint: Endpoint, *, cancel: threading.Event | None = None) -> Fetched:
        """Return the template of `endpoint`, where it came from, and the seconds that it took."""
        return self._fetch(partial(self._requests.endpoint, endpoint), cancel)

    def fetch_overlay_timed(self, *, cancel: threading.Event | None = None) -> Fetched:
        """Return the tunnel device's object, where it came from, and the seconds that it took."""
        return self._fetch(self._requests.overlay, cancel)

    def _fetch(self, ask: Callable[[], Request], cancel: threading.Event | None) -> Fetched:
        """Fetch what `ask` requests, and ask again if the sources have changed while the compiler read them."""
        for _ in range(_ATTEMPTS):
            request = ask()
            try:
                return self._fetch_request(request, cancel)
            except _SourcesChanged:
                continue
        reason = f"error: {request.library} changed during each of {_ATTEMPTS} compilations: reload when it is complete"
        raise CompileError(request.kind.object, (), reason)

    def _fetch_request(self, request: Request, cancel: threading.Event | None) -> Fetched:
        with self._lock:
            slot = self._slots.setdefault(request.hash, _Slot())
        failures, started = slot.failures, time.monotonic()
        waited = not slot.lock.acquire(blocking=False)
        if waited:
            acquire_thread_lock(slot.lock, cancel)
        try:
            wait = time.monotonic() - started if waited else 0.0
            if slot.template is not None and slot.stamp == _stamp(request.path):
                return Fetched(slot.template, Origin.WAITED if waited else Origin.HIT, wait_seconds=wait)
            if slot.failure is not None and slot.failures != failures:
                raise CompileError(slot.failure.output, slot.failure.argv, slot.failure.stderr) from slot.failure
            slot.failure = slot.template = None
            try:
                fetched = self._produce(request, slot, cancel)
            except CompileError as error:
                slot.failure, slot.failures = error, slot.failures + 1
                raise
            return replace(fetched, wait_seconds=fetched.wait_seconds + wait)
        finally:
            slot.lock.release()

    def _produce(self, request: Request, slot: _Slot, cancel: threading.Event | None) -> Fetched:
        """Find or compile the object and parse it; the caller holds the slot's lock."""
        for attempts_left in reversed(range(_ATTEMPTS)):
            with DirectoryLock(request.directory, cancel) as lock:
                found = request.path.is_file()
                try:
                    compiled = 0.0 if found else self._find_or_compile(request, cancel)
                    stamp, started = _stamp(request.path), time.monotonic()
                    image = _parsed(request.path, stamp)
                except (CompileError, ObjectError):
                    # No verdict on the source: an object from the disk was damaged, or the directory went under us.
                    if not attempts_left or (not found and lock.intact()):
                        raise
                    request.path.unlink(missing_ok=True)
                    continue
            parsed = time.monotonic() - started
            origin = Origin.COMPILED if compiled else Origin.WAITED if lock.waited else Origin.HIT
            slot.template = Template(request.hash, request.kind, request.path, image, VerifyTimes(), request.node)
            slot.stamp = stamp
            return Fetched(slot.template, origin, compiled, lock.waited, parsed)
        raise CompileError(request.kind.object, (), f"error: {request.directory} is removed again and again")

    def _find_or_compile(self, request: Request, cancel: threading.Event | None) -> float:
        """Take the object that another node has compiled, or compile it; return the seconds that the compiler took."""
        cache = None if self._config.object_cache is None else ObjectCache(self._config.object_cache)
        self._write_headers(request)
        content = None if cache is None else cache.get(request.key)
        if content is not None:
            place(request.path, content)
            return 0.0
        read: set[Path] = set()
        seconds = self._compile(request, read, cancel)
        generated = {path for path in read if path.parent == request.directory}
        # An object of a source that the hash does not cover is nobody else's.
        if cache is not None and request.sources.covers(read - generated):
            cache.put(request.key, request.path.read_bytes())
        return seconds

    def _write_headers(self, request: Request) -> None:
        """Write the generated headers under the directory's lock."""
        try:
            # What a killed process left; nobody else works here while we hold the lock.
            for scratch in request.directory.glob(f"{scratch_prefix(request.path)}*"):
                shutil.rmtree(scratch, ignore_errors=True)
            for name, text in request.files.items():
                (request.directory / name).write_text(text)
        except OSError as error:
            reason = f"error: failed to write template header: {error.filename or request.directory}: {error.strerror}"
            raise CompileError(request.kind.object, (), reason) from error

    def _compile(self, request: Request, read: set[Path], cancel: threading.Event | None) -> float:
        """Compile under the directory's lock and return the seconds that it took; add what was read to `read`."""
        if self._on_compile is not None:
            self._on_compile(request.kind, request.hash)
        started = time.monotonic()
        try:
            compile_source(
                request.library / request.kind.source,
                request.path,
                # The node's headers lie beside ep_config.h, not in one place for all: another process may compile
                # another configuration of the same node at this moment.
                includes=(request.directory, request.library, request.library / "include"),
                defines=request.defines,
                compiler=request.compiler,
                werror=request.werror,
                timeout=self._timeout,
                cancel=cancel,
                names={request.directory: "template", request.library: "bpf"},
                read=read,
                confirm=partial(self._confirm, request),
            )
        except CompileError:
            self._confirm(request)
            raise
        return time.monotonic() - started

    def _confirm(self, request: Request) -> None:
        """Raise _SourcesChanged unless the compiler has read what the request's hash says."""
        if not self._requests.is_current(request):
            raise _SourcesChanged


@lru_cache(maxsize=_REMEMBERED)
def _parsed(path: Path, stamp: tuple[int, ...]) -> ObjectImage:
    """Read the object at `path`; once in a process, as long as its stamp says that it is the same file."""
    image = read_object(path)
    image.spec.check()
    return image


def _stamp(path: Path) -> tuple[int, ...]:
    """Return what tells one file from another of the same name; () if there is none."""
    try:
        info = path.stat()
    except OSError:
        return ()
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns
