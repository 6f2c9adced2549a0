"""Pretraining: packed rows, the loss, tokenizers, and runs that resume bit for bit after being killed."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import accumulate, chain
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

import minillm
from minillm import InputError
from minillm.lab.pretrain import Pretrain, pretrain
from minillm.operations import IGNORED
from minillm.reference import bpe
from minillm.training.checkpoints import CHECKPOINT, restore_checkpoint, save_checkpoint
from minillm.training.pretraining import PretrainingRecipe, held_out_loss, language_model_loss, pack, pack_exchanges
from minillm.training.tokenizers import byte_pairs, characters, token_bytes, train_tokenizer, words
from tests.tolerances import assert_close
from tests.training.small_loop import ROWS, small_decoder, trained_loop, untrained_loop

END = 0
documents = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=7), min_size=1, max_size=9)
ROOT = Path(__file__).parents[2]
LICENSE = (ROOT / "LICENSE").read_text("utf-8")


@given(documents, st.integers(1, 8))
def test_in_a_packed_stream_every_token_but_the_first_is_a_target_once(texts, length):
    stream = [END] + [token for text in texts for token in (*text, END)]
    rows = [row.ids for row in pack(texts, END, length)]
    assert all(row.labels == row.ids for row in pack(texts, END, length))
    assert [token for row in rows for token in row[1:]] == stream[1:]
    assert [row[0] for row in rows] == stream[:-1:length]
    assert max(map(len, rows)) <= length + 1


@given(documents, st.integers(7, 12), st.data())
def test_packed_exchanges_are_whole_and_in_order_and_questions_have_no_labels(texts, length, data):
    cuts = [data.draw(st.integers(0, len(text))) for text in texts]
    exchanges = [(text[:cut], text[cut:]) for text, cut in zip(texts, cuts, strict=True)]
    ids, labels = zip(*pack_exchanges(exchanges, length), strict=True)
    assert max(map(len, ids)) <= length + 1
    assert list(chain(*ids)) == list(chain(*texts))
    assert list(chain(*labels)) == list(chain(*([IGNORED] * len(q) + answer for q, answer in exchanges)))
    assert set(accumulate(map(len, ids))) <= set(accumulate(map(len, texts))), "no exchange is split"
    with pytest.raises(InputError, match="must fit into a row of 13 tokens, got 14"):
        pack_exchanges([([1] * 7, [1] * 7)], 12)


def test_sizes_learning_rate_and_batch_size_follow_from_the_depth():
    nano, tiny, small = (PretrainingRecipe.from_preset(name) for name in ("nano", "tiny", "small"))
    config = tiny.config(61)
    assert (config.layers, config.width, config.heads, config.feed_forward_width) == (4, 128, 4, 344)
    assert nano.batch_size < tiny.batch_size < small.batch_size
    assert nano.learning_rate > tiny.learning_rate > small.learning_rate
    assert PretrainingRecipe.from_preset("tiny", steps=7).steps == 7
    with pytest.raises(InputError, match="no preset 'large'; available: nano, tiny, small"):
        PretrainingRecipe.from_preset("large")
    with pytest.raises(InputError, match="steps must be at least 1, got 0"):
        PretrainingRecipe.from_preset("nano", steps=0)


def test_the_loss_is_the_cross_entropy_of_every_label_without_padding():
    decoder = small_decoder()
    logits = [decoder(torch.tensor([row.ids[:-1]]))[0] for row in ROWS]
    expected = sum(
        nn.functional.cross_entropy(each, torch.tensor(row.labels[1:]), reduction="sum")
        for each, row in zip(logits, ROWS, strict=True)
    )
    total, count = language_model_loss(decoder, ROWS)
    assert count == 6
    assert_close(total, expected, "law")


def test_nats_are_a_mean_over_labels_and_bits_over_bytes():
    decoder = small_decoder()
    total = language_model_loss(decoder, ROWS)[0].item()
    found = held_out_loss(decoder, ROWS, range(11), batch_size=2, precision="float32")
    assert found.nats == pytest.approx(total / 6, rel=1e-12)
    assert found.bits_per_byte == pytest.approx(total / math.log(2) / (2 + 3 + 4 + 5 + 7 + 10), rel=1e-12)


@pytest.mark.parametrize("kind", ["bpe", "characters", "words"])
def test_the_tokens_of_a_text_encode_its_bytes(kind):
    text = "Größe 12 of 345: naïve\n\n東京 " + LICENSE[:3000]
    tokenizer = train_tokenizer(kind, [text], 5000)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    sizes = token_bytes(tokenizer)
    assert sum(sizes[token] for token in ids) == len(text.encode())
    assert sizes[tokenizer.eos] == 0


def test_byte_pairs_equal_those_of_the_reference():
    ours, reference = byte_pairs([LICENSE], 401), bpe.train(LICENSE, 400)
    model = json.loads(ours.pipeline.to_str())["model"]
    assert list(bpe.load(model["vocab"], model["merges"]).ranks) == list(reference.ranks)
    assert ours.encode(LICENSE) == bpe.encode(reference, LICENSE)
    assert ours.eos == 400


def test_a_closed_vocabulary_has_the_most_common_tokens_and_the_rest_is_unknown():
    tokenizer = words(["so so so so well 12 12 12"], 4)
    assert tokenizer.decode(tokenizer.encode(" so 12 well")) == " so 12<|unknown|>"
    assert characters(["aab"], 3).decode([2]) == "a"
    with pytest.raises(InputError, match="no tokenizer 'bytes'; available: bpe, characters, words"):
        train_tokenizer("bytes", ["text"], 300)
    with pytest.raises(InputError, match="vocabulary must be at least 257"):
        byte_pairs(["text"], 100)


def test_the_trained_model_can_be_loaded_and_a_finished_run_is_not_trained_again(tmp_path):
    measured = []
    options = Pretrain(task="word_problems", preset="nano", steps=1, device="cpu", out=tmp_path)
    trained = pretrain(options, measured.append)
    assert [one["step"] for one in measured] == [1]
    assert len(trained.loop.history.losses) == 1
    decoder, tokenizer = minillm.load(tmp_path)
    ids = torch.tensor([tokenizer.encode("Question: A juggler can juggle 48 balls.")])
    assert torch.equal(decoder(ids), trained.decoder.eval()(ids))
    again = pretrain(options, measured.append)
    assert len(measured) == 1
    assert torch.equal(again.decoder(ids), decoder(ids))


PROGRAM = """
import sys
from pathlib import Path
import torch
from minillm.lab.pretrain import Pretrain, pretrain
torch.set_num_threads(1)
options = Pretrain(
    data=Path(sys.argv[2]), out=Path(sys.argv[3]), preset="nano", tokenizer="characters", steps=int(sys.argv[1]),
    device="cpu", eval_every=2, max_length=96,
)
pretrain(options, lambda measured: print(measured["step"], flush=True))
"""


@pytest.fixture
def one_thread():
    """Sums are made in another order by another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _killed(options, order):
    """A run that is killed at a random moment around the writing of a checkpoint; the step that it had reached."""
    command = [sys.executable, "-c", PROGRAM, str(options.steps), str(options.data), str(options.out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    # A checkpoint follows each measurement, so the first is on the disk when the second line comes.
    reached = [process.stdout.readline() for _ in range(2)][-1]
    time.sleep(order.random() * 0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return int(reached or options.steps)


@pytest.mark.slow
def test_a_run_that_is_killed_resumes_bit_for_bit(run, tmp_path, one_thread):
    options, order, reached = replace(run, steps=60), random.Random(6), []
    whole = pretrain(replace(options, out=tmp_path / "whole"))
    for _ in range(6):
        reached.append(_killed(options, order))
        assert not (options.out / CHECKPOINT).exists() or _readable(options.out / CHECKPOINT)
    assert (options.out / CHECKPOINT).exists()
    last = pretrain(options)
    assert last.loop.history.losses == whole.loop.history.losses, f"bit for bit, killed at {reached}"
    assert last.measured == whole.measured
    assert all(torch.equal(*pair) for pair in zip(last.decoder.parameters(), whole.decoder.parameters(), strict=True))
    assert not list(options.out.glob(".checkpoint*")), "unfinished files of killed processes are removed"


def _readable(path):
    with safe_open(str(path), framework="pt") as file:
        return all(file.get_tensor(name).numel() > 0 for name in file.keys())  # noqa: SIM118


def test_a_directory_with_another_run_is_left_unchanged_unless_it_is_overwritten(run):
    run = replace(run, steps=1)
    pretrain(run)
    before = (run.out / CHECKPOINT).read_bytes()
    other = replace(run, seed=1)
    with pytest.raises(InputError, match="holds a run with seed 0, and this one has 1"):
        pretrain(other)
    assert (run.out / CHECKPOINT).read_bytes() == before
    assert pretrain(replace(other, overwrite=True)).options.seed == 1


def test_a_damaged_checkpoint_raises(tmp_path):
    save_checkpoint(tmp_path, trained_loop().state(), {"settings": {}})
    assert restore_checkpoint(tmp_path, untrained_loop(), {}) == {"settings": {}}
    whole = (tmp_path / CHECKPOINT).read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        (tmp_path / CHECKPOINT).write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cannot be read as safetensors .* --overwrite"):
            restore_checkpoint(tmp_path, untrained_loop(), {})


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    loop = trained_loop()
    save_checkpoint(tmp_path, loop.state(), {"settings": {}})
    before = (tmp_path / CHECKPOINT).read_bytes()

    def fail(tensors, path, metadata):
        Path(path).write_bytes(b"half of")
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(tmp_path, loop.state(), {"settings": {}})
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert os.listdir(tmp_path) == [CHECKPOINT]


def test_a_checkpoint_is_saved_before_its_measurement_is_printed(run):
    def console(measured):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        pretrain(run, on_measured=console)
    assert (run.out / CHECKPOINT).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "pretrain needs either --data FILE.txt or --task"),
        ({"task": "word_problems"}, "pretrain needs either --data FILE.txt or --task"),
        ({"max_length": 0}, "eval_every and max_length must be at least 1, got 2 and 0"),
        ({"seed": -1}, "seed must be an integer"),
        ({"backend": "numpy", "device": "cuda"}, "the numpy backend runs on the CPU, got device cuda"),
    ],
)
def test_invalid_options_raise_and_nothing_is_written(run, changes, message):
    with pytest.raises(InputError, match=message):
        pretrain(replace(run, **changes))
    assert not run.out.exists()
