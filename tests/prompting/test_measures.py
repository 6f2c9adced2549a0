"""The four measures equal what lm-eval computes under these names."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from minillm import InputError, Tokenizer, save
from minillm.prompting.measures import MEASURES, measured, prior_scores
from minillm.prompting.scoring import answer_scores
from tests.prompting.asked import DECODER, TOKENIZER
from tests.tolerances import assert_close

pytestmark = pytest.mark.checked

ANSWERS = (" no", " café", " not at all")


def test_by_hand():
    scores = torch.tensor([[-2.0, -8.0, -10.0]], dtype=torch.float64)
    found = measured(scores, ANSWERS, torch.tensor([-1.0, -9.0, -4.0], dtype=torch.float64))
    expected = {
        "acc": [-2.0, -8.0, -10.0],
        "acc_norm": [-2 / 2, -8 / 4, -10 / 10],
        "acc_bytes": [-2 / 2, -8 / 5, -10 / 10],
        "acc_mutual_info": [-1.0, 1.0, -6.0],
    }
    assert found.keys() == expected.keys() == MEASURES.keys() - {"channel"}
    for name, values in expected.items():
        assert_close(found[name][0], values, "law", name)


def test_an_empty_answer_raises():
    with pytest.raises(InputError, match="answers must not be empty"):
        measured(torch.zeros(1, 2), (" yes", " "), torch.zeros(2))


def log_likelihood(model, context, answer):
    """As lm-eval's Hugging Face model computes it, row by row: context and continuation are encoded together."""
    before = TOKENIZER.encode(context) or [TOKENIZER.bos]
    whole = TOKENIZER.encode(context + answer) if context else before + TOKENIZER.encode(answer)
    assert whole[: len(before)] == before
    with torch.no_grad():
        logits = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(logits[place - 1, whole[place]].item() for place in range(len(before), len(whole)))


def test_they_equal_those_of_transformers_row_by_row(tmp_path):
    save(copy.deepcopy(DECODER).float(), TOKENIZER, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    contexts = ["the theme of the film is", "don't", "it is 12"]
    ids = [TOKENIZER.encode(answer) for answer in ANSWERS]
    assert {len(answer) for answer in ids} != {1}
    with torch.no_grad():
        scores = answer_scores(DECODER, [TOKENIZER.encode(context) for context in contexts], ids)
    found = measured(scores, ANSWERS, prior_scores(DECODER, TOKENIZER, ids))
    prior = [log_likelihood(theirs, "", answer) for answer in ANSWERS]
    for row, context in enumerate(contexts):
        plain = [log_likelihood(theirs, context, answer) for answer in ANSWERS]
        expected = {
            "acc": plain,
            "acc_norm": [one / len(answer[1:]) for one, answer in zip(plain, ANSWERS, strict=True)],
            "acc_bytes": [one / len(answer[1:].encode()) for one, answer in zip(plain, ANSWERS, strict=True)],
            "acc_mutual_info": [one - other for one, other in zip(plain, prior, strict=True)],
        }
        for name, values in expected.items():
            assert_close(found[name][row], values, "law in float32", name)


def test_an_empty_prompt_is_bos_or_else_eos():
    for names, start in (({"bos": "<|im_start|>", "eos": "<|im_end|>"}, 1), ({"eos": "<|im_end|>"}, 2)):
        tokenizer = Tokenizer(TOKENIZER.pipeline, names)
        expected = answer_scores(DECODER, [[start]], [[9]])[0].detach()
        assert_close(prior_scores(DECODER, tokenizer, [[9]]), expected, "law")
    with pytest.raises(InputError, match="neither bos nor eos"):
        prior_scores(DECODER, Tokenizer(TOKENIZER.pipeline, {}), [[9]])
