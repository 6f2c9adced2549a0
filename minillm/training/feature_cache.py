"""Features on disk: a frozen decoder computes the same ones for a text every time, so they are computed once.

A store is a directory. features.json describes everything that the features depend on: weights, tokenizer, texts,
layer, pooling and precision. features.safetensors contains the features with their sha256, and is memory-mapped.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm.adapt.frozen_head import FeatureRecipe, pooled
from minillm.data.batches import length_buckets, pad_right
from minillm.decoder import Decoder
from minillm.errors import InputError, one_sentence
from minillm.runtime.device import autocast
from minillm.runtime.files import commit, complete
from minillm.runtime.fingerprint import json_fingerprint, tensor_fingerprint
from minillm.runtime.progress import note, progress
from minillm.runtime.reading import open_tensors, read_json
from minillm.shapes import Float

BATCH = 32
MANIFEST, FEATURES = "features.json", "features.safetensors"


@torch.no_grad()
def compute_features(
    decoder: Decoder, texts: Sequence[Sequence[int]], recipe: FeatureRecipe, name: str = "features"
) -> Float[Tensor, "N D"]:
    """The features of texts, without dropout; on the CPU, in the dtype of the embeddings."""
    device, training = decoder.embed.weight.device, decoder.training
    found = torch.empty(len(texts), decoder.config.width, dtype=decoder.embed.weight.dtype)
    decoder.eval()
    batches = length_buckets([len(text) for text in texts], BATCH)
    try:
        for batch in progress(batches, desc=name, unit="batch") if name else batches:
            ids, last = pad_right([texts[index] for index in batch])
            with autocast(device, recipe.precision):
                hidden = decoder.run_blocks(decoder.embed(ids.to(device)), stop=recipe.stage(decoder))
            # Attention is causal, so only the pooling has to mask padding on the right.
            mask = torch.arange(ids.shape[1]) <= last[:, None]
            found[batch] = pooled(hidden, mask.to(device), recipe.pooling).to(found.dtype).cpu()
    finally:
        decoder.train(training)
    return found


def cached_features(
    decoder: Decoder, texts: Sequence[Sequence[int]], root: Path, recipe: FeatureRecipe,
    tokenizer_fingerprint: str | None = None, name: str = "features",
) -> tuple[Float[Tensor, "N D"], float]:  # fmt: skip
    """`compute_features`, computed once, saved in a directory under `root` (the store), and memory-mapped from it.

    The second value is the seconds that an earlier computation took, 0 for one in this call. The name of the directory
    is a digest of everything that the features depend on. Raises InputError for a store that is damaged or stale,
    naming what has changed.
    """
    if not texts:
        raise InputError("features need at least one text, got none")
    described = _description(decoder, texts, recipe, tokenizer_fingerprint)
    key = json_fingerprint(described)
    store = root / key[:16]
    complete(store)
    if (store / MANIFEST).exists():
        _check_manifest(store / MANIFEST, described)
    if not (store / FEATURES).exists():
        start = time.perf_counter()
        features = compute_features(decoder, texts, recipe, name)
        seconds = str(time.perf_counter() - start)
        metadata = {"key": key, "sha256": _seal(features, seconds), "seconds": seconds}
        try:
            with commit(store) as new:
                new.text(MANIFEST, json.dumps(described, indent=2))
                new.tensors(FEATURES, {"features": features}, metadata)
        except OSError as problem:
            note(f"the features are not stored: {one_sentence(problem)}")
        return features, 0.0
    return _mapped(store / FEATURES, key, (len(texts), decoder.config.width))


def _description(
    decoder: Decoder, texts: Sequence[Sequence[int]], recipe: FeatureRecipe, tokenizer_fingerprint: str | None
) -> dict[str, Any]:
    """Everything that features depend on; with the tokenizer, since the same ids are another text in another one."""
    return {
        "weights": json_fingerprint({name: tensor_fingerprint(tensor) for name, tensor in decoder.named_parameters()}),
        "config": repr(decoder.config),
        "tokenizer": tokenizer_fingerprint,
        "texts": json_fingerprint([list(text) for text in texts]),
        **asdict(recipe),
        "rows": len(texts),
    }


def _check_manifest(path: Path, described: dict[str, Any]) -> None:
    """Raises InputError if a store has another description, or a damaged one."""
    found = read_json(path)
    odd = next((name for name in described if found.get(name) != described[name]), None)
    if odd is not None:
        raise InputError(
            f"the features in {path.parent} are stale: {odd} is {described[odd]!r} now and was {found.get(odd)!r} when "
            "they were stored; delete the directory"
        )


def _mapped(path: Path, key: str, shape: tuple[int, int]) -> tuple[Float[Tensor, "N D"], float]:
    with open_tensors(path, "; delete the file") as file:
        features, stored = file.get_tensor("features"), file.metadata() or {}
    if stored.get("key") != key or features.shape != shape:
        raise InputError(f"the stored features in {path} belong to another store; delete the file")
    seconds = stored.get("seconds")
    if stored.get("sha256") != _seal(features, seconds):
        raise InputError(f"the stored features in {path} are damaged: their sha256 differs; delete the file")
    return features, float(seconds or 0)


def _seal(features: Tensor, seconds: str | None) -> str:
    """The sha256 of what is stored. Stores of an earlier minillm have no seconds."""
    found = tensor_fingerprint(features)
    return found if seconds is None else json_fingerprint([found, seconds])
