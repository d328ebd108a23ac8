"""The C library's functions for system calls that Python 3.11 has none for.

A foreign call lets go of the interpreter lock. Each function is a declaration of its own, so that one user's argument
types are not another's.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

_library = ctypes.CDLL(None, use_errno=True)


def function(name: str, *arguments: Any, result: Any = ctypes.c_int) -> Callable[..., Any]:
    """Return a function of the C library with these argument types; AttributeError if the library lacks it."""
    found = _library[name]
    found.argtypes, found.restype = arguments, result
    return found


def last_error(what: str | None = None) -> OSError:
    """Return the error of the calling thread's last call; `what` is the file or the call that it concerns."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), *(() if what is None else (what,)))


def check(result: int, what: str | None = None) -> int:
    """Return `result`, what a function of the C library returned; OSError if that is an error."""
    if result < 0:
        raise last_error(what)
    return result
