"""The dimension key: the one place where the letters of every shape are defined.

The same letters are used in the jaxtyping signatures, the einops patterns, the suffixes of numpy names
(`scores_BHTS`) and the kernels. A test checks that no signature uses another letter.

In a signature, `Float[Tensor, "B T D"]` is a floating-point tensor with three axes. A letter has one size throughout a
call. Further notation of jaxtyping:

    *N              any number of axes, also none: "*N D" is a vector, a matrix, a batch of sequences, ...
    #B              an axis of size B or 1; size 1 is broadcast
    _               an axis of any size, which is not checked
    1               an axis of size 1
    K//2, {width}   a size computed from other sizes, or from an argument of the function
    ""              a scalar
"""

from jaxtyping import Bool, Float, Int

__all__ = ["DIMENSIONS", "Bool", "Float", "Int"]

DIMENSIONS = {
    "B": "batch",
    "T": "query positions",
    "P": "prefix (prompt) positions",
    "S": "key positions: S = P + T, plus the positions in the decoding cache",
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
    "N": "leading axes, flattened",
}
