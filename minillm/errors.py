"""The exception that minillm raises for wrong input."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Wrong input. The message names the wrong value, what is allowed and what to do; a command prints it and exits
    with code 2."""


def check_seed(seed: int) -> None:
    """Raises InputError for a seed that torch does not accept, or that it treats like another seed."""
    if not 0 <= seed < 2**63:
        raise InputError(f"seed must be an integer in [0, 2^63 - 1], got {seed}")


def unknown(what: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that does not exist, with the most similar one if there is one, else with all that exist."""
    known, word = list(known), name.strip("-")
    near = [one for one in known if word in one.strip("-").replace("_", "-").split("-")] or difflib.get_close_matches(
        name, known, 1
    )
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"
    return InputError(f"unknown {what}: {name!r}; {hint}")
