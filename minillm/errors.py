"""The exception that minillm raises for wrong input."""


class InputError(ValueError):
    """Wrong input. The message names the wrong value, what is allowed and what to do; a command prints it and exits
    with code 2."""


def check_seed(seed: int) -> None:
    """Raises InputError for a seed that torch does not accept, or that it treats like another seed."""
    if not 0 <= seed < 2**63:
        raise InputError(f"seed must be an integer in [0, 2^63 - 1], got {seed}")
