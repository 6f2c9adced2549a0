"""Forged adapter files: after a change every sha256 is updated to agree."""

import hashlib
import json

from safetensors.torch import load_file, save_file

from minillm.adapt.description import DESCRIPTION, TENSORS
from minillm.runtime.fingerprint import tensor_fingerprint


def described(directory, **changes):
    """adapter.json with some fields replaced, and a new sha256."""
    found = json.loads((directory / DESCRIPTION).read_text()) | changes
    del found["sha256"]
    found["sha256"] = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    (directory / DESCRIPTION).write_text(json.dumps(found))
    return directory


def stored(directory, change):
    """adapter.safetensors changed by a function of its dictionary, and the new sha256 of each tensor."""
    # Old versions of safetensors map the file that is written over here.
    tensors = {name: tensor.clone() for name, tensor in load_file(directory / TENSORS).items()}
    change(tensors)
    save_file(tensors, directory / TENSORS)
    saved = json.loads((directory / DESCRIPTION).read_text())
    prints = {
        name: saved["tensors"].get(name) if name in saved["differences"] else tensor_fingerprint(tensor)
        for name, tensor in tensors.items()
    }
    return described(directory, tensors=prints)
