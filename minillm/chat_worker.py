"""The process that renders chat templates, which are untrusted code: jinja2's immutable sandbox within limits.

`chat_template.py` runs this file by its path; it imports jinja2 and the standard library alone, so it starts in 0.1 s.
The operating system ends it beyond its CPU time (Linux, macOS) and refuses memory (Linux) beyond its limits.
"""

import json
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any

LONGEST_REASON = 500


def serve(seconds: float, megabytes: int) -> None:
    """Render one conversation per line: JSON on standard input and output, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the parent
    with suppress(ImportError, ValueError, OSError):  # Windows has no such limit, and macOS may refuse it
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (megabytes * 10**6, megabytes * 10**6))
    compiled = lru_cache(maxsize=4)(_sandbox().from_string)
    for line in sys.stdin.buffer:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, seconds)  # for each line; idle time does not count
        sys.stdout.write(json.dumps(_rendered(compiled, *json.loads(line))) + "\n")
        sys.stdout.flush()


def _rendered(compiled: Callable[[str], Any], template: str, given: Mapping[str, Any], longest: int) -> dict[str, str]:
    """The text, or the reason why there is none. After a MemoryError this process ends."""
    pieces, length = [], 0
    try:
        for piece in compiled(template).generate(given):
            pieces.append(piece)
            length += len(piece)
            if length > longest:
                return {"problem": f"writes more than {longest} characters"}
    except MemoryError:
        raise
    except Exception as problem:  # untrusted code may raise anything
        reason = " ".join(str(problem)[:LONGEST_REASON].split())
        return {"problem": f"fails on this conversation: {reason}"}
    return {"text": "".join(pieces)}


def _sandbox() -> Any:
    """jinja2's immutable sandbox with the functions that chat templates expect (as in transformers)."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    class Generation(Extension):
        """{% generation %} ... {% endgeneration %} encloses what the assistant writes; `generation_edge`, if given,
        is written at both ends."""

        tags = {"generation"}  # noqa: RUF012 (declared so by jinja2)

        def parse(self, parser):
            line = next(parser.stream).lineno
            edge = nodes.Output([nodes.Name("generation_edge", "load")], lineno=line)
            return [edge, *parser.parse_statements(("name:endgeneration",), drop_needle=True), edge]

    extensions = ["jinja2.ext.loopcontrols", Generation]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    environment.filters["tojson"] = _tojson
    return environment


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Plain JSON: jinja2's own filter escapes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


if __name__ == "__main__":
    limits, *folders = sys.argv[1:]
    sys.path += folders
    serve(*json.loads(limits))
