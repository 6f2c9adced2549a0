"""The one exception that minillm raises on purpose."""


class InputError(ValueError):
    """What the caller gave cannot work. The message is one sentence that says what was wrong, what was
    expected and, where there is one, the nearest thing that would do. The command line prints it and exits 2.
    """
