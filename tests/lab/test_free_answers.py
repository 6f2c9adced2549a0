"""Free answers: rows that just fit are trained on and answered; longer ones are refused before training, or cut."""

import pytest
import torch

import minillm
from minillm import Decoder, DecoderConfig, InputError, adapt
from minillm.data.conversations import Conversations, exchange
from minillm.lab.experiment import Experiment
from minillm.lab.free_answers import adapt_to_answers
from minillm.training.loop import Loop
from minillm.training.schedule import TrainingSettings
from minillm.training.tokenizers import byte_pairs

TOKENIZER = byte_pairs([], 257)
DECODER = Decoder(DecoderConfig.tiny(vocabulary=257, layers=1, context_length=32))
EXPERIMENT = Experiment(DECODER, TOKENIZER, torch.device("cpu"), "float32", 0)
SETTINGS = TrainingSettings(epochs=1, learning_rate=1e-3)
# With a prefix of 4, the newline and the end, 26 characters fill the context: in one row of them the text is long, in
# the next the answer.
ROWS = [exchange("q" * (26 - length), "a" * length, "{text}\n", f"line {length}") for length in (1, 20, 3, 15)]
LONG = exchange("the first " + "q" * 30, "abc", "{text}\n", "line 9")


def adapted(rows, truncate="error"):
    method = adapt.PrefixTuning(DECODER, 4)
    task = Conversations("", rows, ROWS[:2], ROWS)
    return adapt_to_answers(EXPERIMENT, task, method, SETTINGS, lambda: None, truncate)


def test_rows_that_fit_alone_are_answered_though_the_longest_prompt_and_answer_of_a_batch_do_not_fit():
    assert adapted(ROWS)["exact_match"] == 0
    one_more = [*ROWS, exchange("q" * 26, "a", "{text}\n")]
    assert len(adapted(one_more)["losses"]) == 1, "the last token of an answer is no input"


def test_a_row_that_is_too_long_is_refused_before_training_or_cut(monkeypatch, capsys):
    monkeypatch.setattr(Loop, "step", lambda *_: pytest.fail("it has trained"))
    sentence = (
        r"line 9 \('the first q+'\): its prompt has 41 tokens, and 25 fit \(a context of 32, 4 for the method's "
        r"prefix, 3 for the answer\); 1 of 11 texts are too long"
    )
    with pytest.raises(InputError, match=sentence):
        adapted([*ROWS, LONG])
    with pytest.raises(InputError, match=r"exchanges\[1\] \('q+'\): its prompt has 40 tokens, and 30 fit"):
        minillm.train(adapt.FineTune(DECODER), TOKENIZER, [("a", "b"), ("q" * 40, "ab")])
    with pytest.raises(InputError, match="line 9: the prompt without its text has 1 tokens, and 0 fit"):
        adapted([*ROWS, exchange(LONG.text, "a" * 29, "{text}\n", "line 9")], "left")
    monkeypatch.undo()
    assert len(adapted([*ROWS, LONG], "right")["losses"]) == 1
    assert capsys.readouterr().err == "truncated (right): 1 of 11 texts, the longest prompt has 41 tokens\n"
