"""Features on disk: "embeddings can be stored beforehand", for a frozen decoder says the same of a text every time.

A store is a directory: `features.json` says what the features are of (weights, tokenizer, texts, layer, pooling,
precision), and every `SHARD` texts have a safetensors file, with a sha256 over its numbers. Shards are read by memory
mapping, so that the features of many texts need no memory; one that is there already is not computed again.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from minillm.data.batches import length_buckets, pad_right
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.runtime.device import autocast
from minillm.runtime.files import replacing
from minillm.runtime.fingerprint import fingerprint, tensor_fingerprint
from minillm.runtime.progress import progress
from minillm.shapes import Bool, Float, Int

BATCH = 32
SHARD = 8192
MANIFEST = "features.json"
POOLINGS = ("last", "mean", "first")


@dataclass(frozen=True)
class Recipe:
    """How a text becomes one vector: the hidden states after block `layer` (None: after the last norm), pooled.

    The last token is the one that has read the whole text. The first has read nothing but itself, for the decoder is
    causal: where BERT has its [CLS], a decoder has a constant, and it is offered so that this can be seen.
    """

    layer: int | None = None
    pooling: str = "last"
    precision: str = "float32"

    def __post_init__(self):
        if self.pooling not in POOLINGS:
            raise InputError(f"there is no pooling {self.pooling!r}; there is: {', '.join(POOLINGS)}")

    def stage(self, decoder: Decoder) -> int | None:
        """Where `Decoder.run_blocks` stops. Raises InputError for a block that is not there."""
        if self.layer is None:
            return None
        if not 0 <= self.layer < decoder.config.layers:
            raise InputError(f"there is no block {self.layer}: this decoder has 0 to {decoder.config.layers - 1}")
        return self.layer + 1


def pooled(hidden: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"], pooling: str) -> Float[Tensor, "B D"]:
    """One vector a row: of its last real token, of its first, or the mean of all of them."""
    if pooling == "mean":
        weights = mask.to(hidden.dtype) / mask.sum(-1, keepdim=True)
        return (hidden * rearrange(weights, "B T -> B T 1")).sum(1)
    places = torch.arange(mask.shape[1], device=mask.device)
    real = torch.where(mask, places, 0 if pooling == "last" else mask.shape[1] - 1)
    chosen = real.amax(-1) if pooling == "last" else real.amin(-1)
    return hidden[torch.arange(len(hidden), device=hidden.device), chosen]


def text_features(
    decoder: Decoder, ids: Int[Tensor, "B T"], recipe: Recipe, mask: Bool[Tensor, "B T"] | None = None
) -> Float[Tensor, "B D"]:
    """The features of a batch of texts, in the dtype of the hidden states."""
    hidden = decoder.run_blocks(decoder.embed(ids), stop=recipe.stage(decoder), mask=mask)
    return pooled(hidden, torch.ones_like(ids, dtype=torch.bool) if mask is None else mask, recipe.pooling)


@torch.no_grad()
def compute_features(
    decoder: Decoder, texts: Sequence[Sequence[int]], recipe: Recipe | None = None, name: str = "features"
) -> Float[Tensor, "N D"]:
    """The features of texts, on the CPU and in the dtype of the embeddings; the decoder runs without dropout."""
    recipe = recipe or Recipe()
    device, training = decoder.embed.weight.device, decoder.training
    found = torch.empty(len(texts), decoder.config.width, dtype=decoder.embed.weight.dtype)
    decoder.eval()
    try:
        for batch in progress(length_buckets([len(text) for text in texts], BATCH), desc=name, unit="batch"):
            ids, last = pad_right([texts[index] for index in batch])
            with autocast(device, recipe.precision):
                hidden = decoder.run_blocks(decoder.embed(ids.to(device)), stop=recipe.stage(decoder))
            # Padding on the right needs no mask to be run, only to be left out.
            mask = torch.arange(ids.shape[1]) <= last[:, None]
            found[batch] = pooled(hidden, mask.to(device), recipe.pooling).to(found.dtype).cpu()
    finally:
        decoder.train(training)
    return found


class StoredFeatures:
    """Features of N texts in memory-mapped pieces: what is not used is not read. `split` is as a tensor's."""

    def __init__(self, pieces: Sequence[Float[Tensor, "_ D"]]):
        self.pieces = list(pieces)
        self.shape = torch.Size((sum(map(len, self.pieces)), self.pieces[0].shape[1]))

    def __len__(self) -> int:
        return self.shape[0]

    def split(self, rows: int) -> Iterator[Float[Tensor, "_ D"]]:
        """Up to `rows` rows after another, never across two files."""
        for piece in self.pieces:
            yield from piece.split(rows)

    def tensor(self) -> Float[Tensor, "N D"]:
        """All of them in memory."""
        return torch.cat(self.pieces)


def description(
    decoder: Decoder, texts: Sequence[Sequence[int]], recipe: Recipe, tokenizer: str | None
) -> dict[str, Any]:
    """All that features depend on. `tokenizer` is its fingerprint: the same ids of another are another text."""
    return {
        "weights": _digest(fingerprint(decoder.named_parameters())),
        "config": repr(decoder.config),
        "tokenizer": tokenizer,
        "texts": _digest([list(text) for text in texts]),
        **asdict(recipe),
        "rows": len(texts),
        "rows_a_shard": SHARD,
    }


def stored_features(
    decoder: Decoder,
    texts: Sequence[Sequence[int]],
    directory: Path,
    recipe: Recipe | None = None,
    tokenizer: str | None = None,
    name: str = "features",
) -> StoredFeatures:
    """`compute_features`, from the directory as far as they are there, and computed and stored as far as not.

    Raises InputError for a store of something else, naming what differs, and for a damaged one.
    """
    recipe = recipe or Recipe()
    return _stored(decoder, texts, directory, recipe, description(decoder, texts, recipe, tokenizer), name)


def filed_features(
    decoder: Decoder,
    texts: Sequence[Sequence[int]],
    root: Path,
    recipe: Recipe | None = None,
    tokenizer: str | None = None,
    name: str = "features",
) -> StoredFeatures:
    """`stored_features` in a directory of many stores, each under a name that is a key over all it depends on."""
    recipe = recipe or Recipe()
    described = description(decoder, texts, recipe, tokenizer)
    return _stored(decoder, texts, root / _digest(described)[:16], recipe, described, name)


def _stored(
    decoder: Decoder, texts: Sequence[Sequence[int]], directory: Path, recipe: Recipe, described: dict[str, Any],
    name: str,
) -> StoredFeatures:  # fmt: skip
    if not texts:
        raise InputError("there are no texts to store features of")
    _check_manifest(directory / MANIFEST, described)
    key, pieces = _digest(described), []
    for start in range(0, len(texts), SHARD):
        some = texts[start : start + SHARD]
        path = directory / f"features-{start // SHARD:05d}.safetensors"
        if not path.exists():
            _store(path, key, compute_features(decoder, some, recipe, name))
        pieces.append(_mapped(path, key, (len(some), decoder.config.width)))
    return StoredFeatures(pieces)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _check_manifest(path: Path, described: dict[str, Any]) -> None:
    """The store is of what is described; where there is none, it is begun."""
    if not path.exists():
        _write(path, json.dumps(described, indent=2).encode())
        return
    try:
        found = json.loads(path.read_text("utf-8"))
        odd = next((name for name in described if found[name] != described[name]), None)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error!r}); delete the directory and the features are made anew"
        ) from None
    if odd is not None:
        raise InputError(
            f"the features in {path.parent} are stale: {odd} is {described[odd]!r} now and was {found[odd]!r} when "
            "they were stored; delete the directory or name another"
        )


def _store(path: Path, key: str, features: Float[Tensor, "N D"]) -> None:
    _write(path, save({"features": features}, {"key": key, "sha256": tensor_fingerprint(features)}))


def _mapped(path: Path, key: str, shape: tuple[int, int]) -> Float[Tensor, "N D"]:
    try:
        with safe_open(path, "pt") as file:
            features, stored = file.get_tensor("features"), file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"the stored features in {path} cannot be read ({error}); delete the file") from None
    if stored.get("key") != key or features.shape != shape:
        raise InputError(f"the stored features in {path} belong to another store; delete the file")
    if stored.get("sha256") != tensor_fingerprint(features):
        raise InputError(f"the stored features in {path} are damaged: they are not what was written; delete the file")
    return features


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)
