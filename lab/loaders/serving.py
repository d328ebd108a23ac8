"""The other end of the protocol, for loaders of ours: a request a line, and an answer to each, whatever is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

from datapath.base.statefile import parse_json
from datapath.errors import ReloadlabError

Answer = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Does what a request asks for, and returns what the answer says besides `ok`; ReloadlabError or OSError."""


class BadRequest(ReloadlabError):
    """A request that is not as docs/loaders.md says."""


@contextmanager
def reading() -> Iterator[None]:
    """Raise BadRequest for what is missing from a request, or wrong in it, while it is read."""
    try:
        yield
    except KeyError as error:
        raise BadRequest(f"the request has no {error}") from error
    except (TypeError, ValueError) as error:
        raise BadRequest(f"the request is wrong: {error}") from error


def serve(answer: Answer, requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until there are no more, or one is `stop`."""
    for line in requests:
        try:
            request = _request(line)
            if request["request"] == "stop":
                return
            said = {"ok": True, **answer(request)}
        except ReloadlabError as error:
            said = {"ok": False, "error": str(error)}
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            said = {"ok": False, "error": f"{where}{error.strerror}"}
        answers.write(json.dumps(said).encode() + b"\n")
        answers.flush()


def _request(line: bytes) -> Mapping[str, Any]:
    request = parse_json(line)
    if not isinstance(request, dict) or "request" not in request:
        raise BadRequest('the request is no object with "request"')
    return request
