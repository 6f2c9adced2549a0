"""Safetensors directories: shards, damaged files, missing files."""

import json

import pytest
import torch

import minillm
from minillm import InputError

from .huggingface_writing import difference, llama, restored


def test_shards_are_loaded_through_their_index_and_must_agree_with_it(tmp_path):
    oracle = llama()
    oracle.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert not (tmp_path / "model.safetensors").exists()
    ours, _ = minillm.load(tmp_path, dtype=torch.float64)
    assert difference(ours, oracle) < 1e-6
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"]["model.norm.weight"]
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"model\.norm\.weight"):
        minillm.load(tmp_path)


OUTSIDE = ["../model.safetensors", "/etc/model.safetensors", "a\\b.safetensors", "..", "x.bin", 7]
INDICES = ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": "model-9.safetensors"}}']


@pytest.mark.parametrize("index", INDICES + [json.dumps({"weight_map": {"a": file}}) for file in OUTSIDE])
def test_an_invalid_index_and_one_that_names_a_file_outside_its_directory_are_refused(tmp_path, index):
    inside = tmp_path / "inside"
    llama().save_pretrained(inside)
    (inside / "model.safetensors").rename(tmp_path / "model.safetensors")
    (inside / "model.safetensors.index.json").write_text(index)
    with pytest.raises(
        InputError,
        match=r"index\.json (names the shard|cannot be|must be a JSON)|model-9\.safetensors cannot be read",
    ):
        minillm.load(inside)


def test_integer_weights_are_refused(tmp_path):
    llama().save_pretrained(tmp_path)
    whole = restored(tmp_path, lambda tensors: tensors.update({"model.norm.weight": torch.ones(24).to(torch.int8)}))
    with pytest.raises(InputError, match=r"model\.norm\.weight must have a floating-point dtype, got torch\.int8"):
        minillm.load(whole)


def test_truncated_or_overwritten_safetensors_are_refused(tmp_path):
    llama().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 500, 2000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"model\.safetensors cannot be read as safetensors"):
            minillm.load(tmp_path)
    path.write_bytes(b"\xff" * 8 + whole[8:])
    with pytest.raises(InputError):
        minillm.load(tmp_path)


def test_a_directory_without_safetensors_names_what_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        minillm.load(tmp_path)
    llama().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    for name, message in (("weights.gguf", r"weights\.gguf"), ("pytorch_model.bin", "a pickle, which is never opened")):
        weights = weights.rename(tmp_path / name)
        with pytest.raises(InputError, match=message):
            minillm.load(tmp_path)
