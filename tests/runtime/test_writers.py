"""Every writer of minillm leaves, at any crash, all of the earlier result or all of the new one, and no other file."""

import json
import os
import re
import stat
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import minillm
from minillm import TextClassifier
from minillm.adapt.frozen_head import FeatureRecipe
from minillm.hub.gguf_export import export
from minillm.hub.gguf_lora import export_lora
from minillm.hub.peft import export_peft
from minillm.runtime import files
from minillm.training.checkpoints import Checkpoints, restore_checkpoint, save_checkpoint
from minillm.training.feature_cache import cached_features
from minillm.training.tokenizers import words
from tests.adapters.adapters import trained
from tests.decoders import STYLES, random_decoder
from tests.hub.gguf_writing import llama_config
from tests.runtime.crashes import every_crash
from tests.training.small_loop import trained_loop


def model(version):
    vocabulary = [words(["a b c"], 9), words(["d e f"], 9)][version - 1]
    return lambda place: minillm.save(random_decoder(STYLES["Llama"], version), vocabulary, place)


def adapter(version):
    return trained("last block and a soft prompt", seed=version).save


def classifier(version):
    base = random_decoder(STYLES["Llama"]).float(), words(["a b c"], 9)
    fitted = TextClassifier(base=base, method="features", answers={0: " a", 1: " b"}, seed=version)
    return fitted.fit(["a b", "b c", "c a", "b b"] * 3, [0, 1, 0, version - 1] * 3).save


def peft(version):
    method = trained("LoRA", seed=version)
    return lambda place: export_peft(method, place)


def gguf(version):
    decoder = random_decoder(llama_config(), version)
    return lambda place: export(decoder, None, place / "model.gguf")


def gguf_lora(version):
    method = trained("LoRA", random_decoder(llama_config()), version)
    return lambda place: export_lora(method, place / "lora.gguf")


def checkpoint(version):
    loop = trained_loop(seed=version)
    return lambda place: save_checkpoint(place, loop.state(), {"settings": {"seed": version}})


WRITERS = [model, adapter, classifier, peft, gguf, gguf_lora, checkpoint]


def visible(directory):
    return {path.name: content(path) for path in directory.iterdir() if not path.name.startswith(".")}


def content(path):
    """The bytes; of safetensors, which writes metadata in any order, the header and the rest."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    length, rest = int.from_bytes(path.read_bytes()[:8], "little"), path.read_bytes()[8:]
    return json.loads(rest[:length]), rest[length:]


@pytest.fixture
def versions(request, tmp_path):
    """Writes a first and a second result to one directory, and the content of each."""
    place, saves = tmp_path / "place", [request.param(version) for version in (1, 2)]
    contents = []
    for save in saves:
        save(place)
        contents.append(visible(place))
    assert contents[0] != contents[1]
    return place, saves, contents


@pytest.mark.parametrize("versions", WRITERS, indirect=True)
def test_a_crash_at_any_step_leaves_the_first_result_or_the_second(versions):
    place, (first, second), (before, after) = versions
    first(place)
    seen = []
    for _ in every_crash(lambda: second(place), place.parent):
        files.complete(place)
        seen.append(visible(place))
        assert seen[-1] in (before, after)
        first(place)
        assert visible(place) == before
        assert {path.name for path in place.iterdir()} == set(before)
    assert before in seen
    assert after in seen


def test_a_checkpoint_is_removed_also_if_its_commit_was_interrupted(tmp_path):
    place, save, loop = tmp_path / "place", checkpoint(1), trained_loop(seed=1)
    for _ in every_crash(lambda: save(place), tmp_path):
        Checkpoints(place).remove()
        assert restore_checkpoint(place, loop, {}) is None


@contextmanager
def files_of_at_most(size):
    """Writing more bytes to a file fails, as on a full disk, in Python and in every library."""
    resource = pytest.importorskip("resource")
    earlier = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, earlier[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, earlier)


@pytest.mark.parametrize("versions", WRITERS, indirect=True)
def test_a_full_disk_at_any_byte_is_an_error_with_the_sizes_and_leaves_the_first_result(versions):
    place, (first, second), (before, _) = versions
    first(place)
    sizes = {path.stat().st_size for path in place.iterdir()}
    for size in sorted({0, 1, *(size // 2 for size in sizes), max(sizes) - 1}):
        with pytest.raises(OSError, match="cannot be written: File too large") as full, files_of_at_most(size):
            second(place)
        assert Path(full.value.filename).parent == place
        assert re.search(r"\(([\d,.]+ kB needed, )?[\d,.]+ kB free\)$", full.value.strerror)
        assert visible(place) == before
        assert {path.name for path in place.iterdir()} == set(before)


@pytest.mark.parametrize("mask", [0o022, 0o077])
@pytest.mark.parametrize("versions", WRITERS, indirect=True)
def test_permissions_follow_the_umask(versions, mask):
    place, (first, _), _ = versions
    earlier = os.umask(mask)
    try:
        first(place)
    finally:
        os.umask(earlier)
    assert {stat.S_IMODE(path.stat().st_mode) for path in place.iterdir()} == {0o666 & ~mask}


def test_features_are_stored_at_any_crash_or_computed_again(tmp_path):
    base, texts = random_decoder(STYLES["Llama"]), [[3, 1], [2]]

    def stored():
        return cached_features(base, texts, tmp_path / "store", FeatureRecipe())[0]

    expected = stored().clone()
    (place,) = (tmp_path / "store").iterdir()
    names = {path.name for path in place.iterdir()}
    for _ in every_crash(stored, tmp_path):
        assert torch.equal(stored(), expected)
        assert {path.name for path in place.iterdir()} == names
        for path in place.iterdir():
            path.unlink()
