"""The dimension key: the one place where the letters of every shape are defined.

The same letters stand in the jaxtyping signatures, in the einops patterns, in the suffixes of numpy names
(`scores_BHTS`) and in the kernels. A test holds that no signature uses another letter.
"""

from jaxtyping import Bool, Float, Int

__all__ = ["DIMENSIONS", "Bool", "Float", "Int"]

DIMENSIONS = {
    "B": "batch",
    "T": "query positions",
    "P": "prefix (prompt) positions",
    "S": "key positions; S = P + T, or the cached ones and T",
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
    "I": "a Linear's input width",
    "O": "a Linear's output width",
    "N": "leading axes, flattened",
}
