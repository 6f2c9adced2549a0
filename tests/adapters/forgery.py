"""Adapter files as only an enemy writes them: whatever is changed, every sha256 in them agrees again."""

import hashlib
import json

from safetensors.torch import load_file, save_file

from minillm.adapt.description import DESCRIPTION, TENSORS
from minillm.runtime.fingerprint import tensor_fingerprint


def described(directory, **changes):
    """adapter.json with some fields exchanged, and sealed again."""
    found = json.loads((directory / DESCRIPTION).read_text()) | changes
    del found["sha256"]
    found["sha256"] = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    (directory / DESCRIPTION).write_text(json.dumps(found))
    return directory


def stored(directory, change):
    """adapter.safetensors changed by a function of its dictionary, and the tensors' sha256 to match."""
    tensors = load_file(directory / TENSORS)
    change(tensors)
    save_file(tensors, directory / TENSORS)
    kept = json.loads((directory / DESCRIPTION).read_text())
    prints = {
        name: kept["tensors"].get(name) if name in kept["differences"] else tensor_fingerprint(tensor)
        for name, tensor in tensors.items()
    }
    return described(directory, tensors=prints)
