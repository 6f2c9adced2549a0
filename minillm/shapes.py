"""The letters of all shapes, and the notation of shape annotations. Letters are defined in this file only.

The same letters are used in the jaxtyping signatures, the einops patterns, the suffixes of numpy names
(`scores_BHTS`) and the kernels. A test checks that no signature uses another letter.

In a signature, `Float[Tensor, "B T D"]` is a floating-point tensor of three axes. A letter has one size throughout a
call: the tests check that (`tests/conftest.py`), a normal run does not. Further notation of jaxtyping:

    *N              any number of axes, also none: "*N D" is a vector, a matrix, a batch of sequences, ...
    #B              an axis of size B or 1; size 1 is broadcast
    _               an axis of any size, which is not checked
    1               an axis of size 1
    K//2, {width}   a size computed from other sizes, or from an argument of the function
    ""              a scalar

A `Mask` is Bool, True for a token and False for padding, or Int for packed rows: 0 for padding, n for the n-th
conversation of the row, which attends to itself (and a prefix) only and has its own positions.
"""

from jaxtyping import Bool, Float, Int
from jaxtyping import Shaped as Mask

__all__ = ["DIMENSIONS", "Bool", "Float", "Int", "Mask"]

DIMENSIONS = {
    "B": "batch",
    "T": "query positions",
    "P": "prefix (prompt) positions",
    "S": "keys: the T new and the cached positions; P more where a prefix was prepended",
    "D": "model width",
    "H": "query heads",
    "G": "key/value heads",
    "K": "head width",
    "F": "feed-forward width",
    "V": "vocabulary",
    "R": "LoRA rank",
    "M": "LoRA adapters, stacked",
    "C": "classes",
    "L": "layers",
    "I": "input width of a Linear",
    "O": "output width of a Linear",
    "N": "rows, of texts or of tokens; *N: leading axes",
}
