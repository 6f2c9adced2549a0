"""`minillm adapt` on conversations: the model answers and stops, and `generate --adapter` uses the same template."""

import json

import pytest
import torch

from minillm import Decoder, DecoderConfig, InputError, adapt, save
from minillm.data.conversations import Conversation, Conversations
from minillm.generation import generate
from minillm.lab.adapt import Adapt
from minillm.lab.experiment import Experiment
from minillm.lab.free_answers import adapt_to_answers
from minillm.prompting.fitting import encode_conversations
from minillm.prompting.lengths import Room
from minillm.runtime.options import parse
from minillm.training.schedule import TrainingSettings
from minillm.training.tokenizers import byte_pairs

TOKENIZER = byte_pairs([], 257)


def conversation(question, answer, *more):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    messages += conversation(*more).messages if more else []
    return Conversation(messages, keywords=(messages[-1]["content"][:2].upper(),), place=f"row {question}")


ROWS = [conversation("1", "one"), conversation("2", "two!"), conversation("3", "three", "4", "four")]
TASK = Conversations("", ROWS, ROWS, ROWS)


def decoder(**config):
    torch.manual_seed(0)
    return Decoder(DecoderConfig.tiny(vocabulary=257, layers=1, context_length=80, **config))


def test_a_model_that_has_memorised_its_conversations_answers_and_stops():
    experiment = Experiment(decoder(), TOKENIZER, torch.device("cpu"), "float32", 0)
    method = adapt.FineTune(experiment.decoder)
    settings = TrainingSettings(epochs=60, learning_rate=1e-2, batch_size=4)
    found = adapt_to_answers(experiment, TASK, method, settings, lambda: None)
    assert (found["exact_match"], found["keyword_match"]) == (1, 1)
    assert found["nats_per_token"] < 1 < 3 < found["nats_per_token_before"]
    assert found["forgetting"] == found["own_text_nats"] - found["own_text_nats_before"] > 0
    assert [(one["prompt"], one["after"]) for one in found["samples"]][:2] == [("1", "one"), ("2", "two!")]
    for row in ROWS:
        prompt = torch.tensor([TOKENIZER.chat(row.messages[:-1])])
        ids = generate(method, prompt, max_new_tokens=20, stop=TOKENIZER.stop)[0, prompt.shape[1] :].tolist()
        assert ids == [*TOKENIZER.encode(row.messages[-1]["content"]), TOKENIZER.eos]


@pytest.mark.slow
def test_after_100_conversations_50_of_50_new_prompts_are_answered_up_to_the_end_token():
    sums = [conversation(f"{a}+{b}", str(a + b)) for a in range(15) for b in range(10)]
    task = Conversations("", sums[::3] + sums[1::3], sums[2::3], sums[2::3])
    assert (len(task.train), len(task.test)) == (100, 50)
    experiment = Experiment(decoder(), TOKENIZER, torch.device("cpu"), "float32", 0)
    method = adapt.FineTune(experiment.decoder)
    found = adapt_to_answers(experiment, task, method, TrainingSettings(epochs=10, learning_rate=3e-3), lambda: None)
    assert found["perplexity"] < found["perplexity_before"] / 10
    for row in task.test:
        prompt = torch.tensor([TOKENIZER.chat(row.messages[:-1])])
        ids = generate(method, prompt, max_new_tokens=20, stop=TOKENIZER.stop)
        assert ids[0, -1] == TOKENIZER.eos


def test_a_long_conversation_is_refused_or_loses_whole_turns_at_one_side(capsys):
    def fitting(context, truncate):
        rows = encode_conversations(TOKENIZER, ROWS, Room(context, 0, 0), truncate)
        return [TOKENIZER.decode(row.ids) for row in rows[-1]]

    whole = "User:\n3\n\nAssistant:\nthree<|endoftext|>\n\nUser:\n4\n\nAssistant:\nfour<|endoftext|>"
    size = len(whole) - 2 * len("<|endoftext|>") + 2
    assert fitting(size - 1, "error") == fitting(size - 1, "left") == [whole], "the last token is no input"
    with pytest.raises(InputError, match=rf"row 3: the conversation has {size} tokens, and {size - 1} fit .*; 1 of 3 "):
        fitting(size - 2, "error")
    assert fitting(size - 2, "left") == [whole[whole.rindex("User") :]]
    assert fitting(size - 2, "right") == [whole[: whole.rindex("\n\nUser")]]
    assert capsys.readouterr().err == "".join(
        f"truncated ({side}): 1 of 3 conversations, by whole turns\n" for side in ("left", "right")
    )
    with pytest.raises(InputError, match=r"row 1: .*; 3 of 3 are too long.* shorten their turns"):
        fitting(9, "left")


@pytest.fixture
def directory(tmp_path):
    """A base without a chat template, and a file with conversations."""
    save(decoder(), TOKENIZER, tmp_path / "base")
    lines = [json.dumps({"messages": row.messages}) for row in ROWS * 3]
    (tmp_path / "chat.jsonl").write_text("\n".join(lines))
    return tmp_path


def run(directory, *words):
    data = "--base", str(directory / "base"), "--data", str(directory / "chat.jsonl"), "--threads", "1"
    parse(Adapt, "minillm adapt", [*data, *words]).run()


def test_the_command_trains_on_conversations_and_generate_uses_their_template(directory, capsys):
    out = directory / "my.adapter"
    command = "--out", str(out), "--r", "2", "--exact-match"
    run(directory, *command)
    printed, notes = capsys.readouterr()
    assert "chat.jsonl: recognised messages by its columns, messages; --kind overrules\n" in notes
    measured = json.loads((out / "adapt.json").read_text())
    assert measured.keys() >= {"perplexity", "perplexity_before", "forgetting", "exact_match", "samples"}
    assert printed.count("\nbefore: ") == len(measured["samples"]) == 2
    description = json.loads((out / "adapter.json").read_text())
    assert (description["chat"], description["prompt"]) == (True, "{text}")
    run(directory, *command)
    assert capsys.readouterr().out == printed, "it is complete"


def test_packed_rows_have_the_losses_of_plain_ones_and_labelled_texts_are_not_packed(directory):
    losses = []
    for pack in ((), ("--pack", "60")):
        out = directory / "-".join(("my", *pack))
        run(directory, "--out", str(out), "--r", "2", "--batch-size", "4", *pack)
        losses.append(json.loads((out / "adapt.json").read_text())["losses"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    words = "--base tiny --task word_problems --train 9 --test 9 --pack 60 --out"
    labelled = parse(Adapt, "minillm adapt", [*words.split(), str(directory / "new")])
    with pytest.raises(InputError, match="--pack joins conversations"):
        labelled.run()


def test_the_data_are_shown_with_the_trained_tokens_in_brackets(directory, capsys):
    run(directory, "--out", str(directory / "new"), "--show-data")
    printed = capsys.readouterr().out
    assert not (directory / "new").exists()
    assert "User:\n2\n\nAssistant:\n[two!<|endoftext|>]\n" in printed
    assert printed.count("--- row") == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "features"), "features trains a classifier"),
        (("--prompt", "{text}:"), "no column 'text'"),
        (("--kind", "messages", "--labels", "a,b"), "are for labelled texts"),
        (("--kind", "alpaca"), "data of alpaca others"),
        (("--kind", "labels"), "no column 'text'"),
        (("--task", "lecture"), "either --data or --task"),
        (("--pack", "0"), "pack must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_refused_and_nothing_is_written(directory, words, message):
    with pytest.raises(InputError, match=message):
        run(directory, "--out", str(directory / "new"), *words)
    assert not (directory / "new").exists()
