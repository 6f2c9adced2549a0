"""The one exception that minillm raises on purpose."""


class InputError(ValueError):
    """What the caller gave cannot work. The message is one sentence that says what was wrong, what was
    expected and, where there is one, the nearest thing that would do. The command line prints it and exits 2.
    """


def check_seed(seed: int) -> None:
    """Raises InputError for a seed that torch would not take, or that another one equals."""
    if not 0 <= seed < 2**63:
        raise InputError(f"the seed is {seed}; it must be a whole number from 0 to 2^63 - 1")
