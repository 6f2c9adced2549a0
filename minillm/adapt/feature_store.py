"""Features on disk: "embeddings can be stored beforehand", for a frozen decoder says the same of a text every time.

One safetensors file holds the features of one list of texts. Its name is a key over everything they depend on: the
weights, the texts' tokens, the layer, the pooling and the precision. Other weights or other texts are another key.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from minillm.adapt.fingerprint import fingerprint
from minillm.batches import length_buckets, pad_right
from minillm.decoder import Decoder
from minillm.device import autocast
from minillm.errors import InputError
from minillm.progress import progress
from minillm.shapes import Float

BATCH = 32


def feature_key(decoder: Decoder, texts: Sequence[Sequence[int]], precision: str) -> str:
    """A sha256 over all that last-token features after the last norm depend on."""
    parts = {
        "weights": fingerprint(decoder),
        "config": repr(decoder.config),
        "texts": [list(text) for text in texts],
        "layer": "after the last norm",
        "pooling": "last token",
        "precision": precision,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@torch.no_grad()
def last_token_features(
    decoder: Decoder, texts: Sequence[Sequence[int]], precision: str = "float32", name: str = "features"
) -> Float[Tensor, "N D"]:
    """The hidden state of each text's last token, after the last norm, in float32 (float64 for a float64 decoder)."""
    device, lengths = decoder.embed.weight.device, [len(text) for text in texts]
    found = torch.empty(len(texts), decoder.config.width, dtype=decoder.embed.weight.dtype)
    decoder.eval()
    for batch in progress(length_buckets(lengths, BATCH), desc=name, unit="batch"):
        ids, last = pad_right([texts[index] for index in batch])
        with autocast(device, precision):
            hidden = decoder.features(ids.to(device))
        found[batch] = hidden[torch.arange(len(batch)), last].to(found.dtype).cpu()
    return found


def stored_features(
    decoder: Decoder,
    texts: Sequence[Sequence[int]],
    directory: Path,
    precision: str = "float32",
    name: str = "features",
) -> Float[Tensor, "N D"]:
    """`last_token_features`, from the disk if they are there and computed and stored if not.

    Raises InputError for a file that is damaged or does not hold what its name says.
    """
    key = feature_key(decoder, texts, precision)
    path = directory / f"{key}.safetensors"
    if path.exists():
        return _read(path, key, (len(texts), decoder.config.width))
    features = last_token_features(decoder, texts, precision, name)
    directory.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(save({"features": features}, {"key": key}))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return features


def _read(path: Path, key: str, shape: tuple[int, int]) -> Tensor:
    try:
        with safe_open(path, "pt") as file:
            features = file.get_tensor("features")
            stored = (file.metadata() or {}).get("key")
    except (SafetensorError, OSError) as error:
        raise InputError(f"the stored features in {path} cannot be read ({error}); delete the file") from error
    if stored != key or features.shape != shape:
        raise InputError(f"the stored features in {path} are not what the file's name says; delete the file")
    return features
