"""Options of a command that are one word on the command line and something else in the code.

A command is a dataclass: tyro reads its options from the command line, `run` uses them, and the JSON holds them.
"""

from typing import Annotated

from tyro.conf import Positional
from tyro.constructors import PrimitiveConstructorSpec

__all__ = ["Names", "Positional", "Text"]

Names = Annotated[
    tuple[str, ...],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="A,B",
        instance_from_str=lambda words: tuple(name.strip() for name in words[0].split(",")),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda names: [",".join(names)],
    ),
]
"""Names with commas between them."""

Text = Annotated[
    str,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="STR",
        instance_from_str=lambda words: words[0].replace("\\n", "\n"),
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda text: [text.replace("\n", "\\n")],
    ),
]
r"""A text in which \n is a newline."""
