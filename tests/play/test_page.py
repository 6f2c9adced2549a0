"""The answers to the requests of the page, on a small base."""

import pytest
import torch

from minillm import InputError, adapt
from minillm.fast import decoding
from minillm.play.look import lens
from minillm.play.page import MOST_CHARACTERS, MOST_TOKENS, Page, Pass, View
from tests.decoders import STYLES, random_decoder

TEXT = "Tom has 3 apples."


def test_the_log_probabilities_are_those_of_the_decoder_and_of_the_adapter(base, page, random_lora):
    decoder, tokenizer = base
    found = page.look(View(text=TEXT, adapter=0))
    ids = torch.tensor([tokenizer.prompt(TEXT)])
    assert "".join(found["tokens"]) == tokenizer.decode(ids[0].tolist())
    expected = {"base": decoder(ids).detach(), "adapted": random_lora()(ids).detach()}
    top = expected["adapted"][0, -1].topk(10).indices
    assert found["next"] == [tokenizer.decode([token]) for token in top.tolist()]
    for name, logits in expected.items():
        scores = logits.log_softmax(-1)[0]
        torch.testing.assert_close(torch.tensor(found[name]), scores[:-1].gather(-1, ids[0, 1:, None])[:, 0])
        torch.testing.assert_close(torch.tensor(found[f"next_{name}"]), scores[-1, top].exp())
    assert found["lens"][-1][0] == found["next"][0], "the last row of the lens is the prediction"


def test_a_client_s_scale_does_not_change_another_s_answer(page):
    first = page.look(View(text=TEXT, adapter=0))
    assert page.look(View(text=TEXT, adapter=0, scale=0.5))["adapted"] != first["adapted"]
    assert page.look(View(text=TEXT, adapter=1, scale=0.5))["adapted"] != first["adapted"]
    none = page.look(View(text=TEXT, adapter=0, scale=0))
    assert none["adapted"] == none["base"] == page.look(View(text=TEXT))["adapted"]
    for text in "abcde":  # the passes are computed again
        page.look(View(text=text))
    assert page.look(View(text=TEXT, adapter=0))["adapted"] == pytest.approx(first["adapted"], rel=1e-3)


def test_the_attention_of_a_prefix_is_set_apart_and_scaled(page):
    shares = []
    for scale in (1, 0.5):
        found = page.look(View(text=TEXT, adapter=1, scale=scale, head=2))
        assert found["prefix"] == 5
        rows = torch.tensor(found["attention"])
        assert rows.shape == (len(found["tokens"]), 5 + len(found["tokens"]))
        torch.testing.assert_close(rows.sum(-1) / 1000, torch.ones(len(rows)), rtol=0, atol=0.02)
        shares.append(rows[:, :5].sum(-1) / scale)
    torch.testing.assert_close(*shares, rtol=0, atol=10)
    assert page.look(View(text=TEXT, adapter=1, scale=0))["prefix"] == 0


@pytest.mark.parametrize("model", [{}, {"adapter": 0, "scale": 0.5}, {"adapter": 1, "scale": 0.5}], ids=str)
def test_a_text_that_begins_as_the_last_one_gets_the_same_answer(page, model):
    page.passes.clear()
    alone = page.look(View(text=TEXT, **model))
    for text in ("Tom has", TEXT + " And?", "Tom had 3 apples.", TEXT[:-1], ""):
        page.look(View(text=text, **model))
        found = page.look(View(text=TEXT, **model))
        assert found["tokens"] == alone["tokens"]
        for name in ("base", "adapted", "next_adapted", "lens_probabilities"):
            torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(alone[name]), rtol=1e-3, atol=1e-4)


def test_the_chat_template_is_applied(page):
    assert page.look(View(text="Tom", chat=True))["tokens"] == ["T", "o", "m", "<|end|>"]


def test_an_earlier_position_and_a_wide_lens(page):
    found = page.look(View(text=TEXT, position=2, wide=True))
    assert (found["position"], found["lens_start"]) == (2, 0)
    assert {len(row) for row in found["lens"]} == {3}
    assert page.look(View(text=TEXT[:5], position=10**9))["position"] < 5


@pytest.mark.parametrize(
    ("view", "problem"),
    [
        ({"text": "a" * (MOST_CHARACTERS + 1)}, "the text may have 8000 characters, got 8001"),
        ({"text": "1 " * MOST_TOKENS}, f"the text may have {MOST_TOKENS} tokens, got"),
        ({"text": 3}, "text has the wrong type: 3"),
        ({"text": "a", "adapter": 2}, "there is no adapter 2: there are 2"),
        ({"text": "a", "adapter": -1}, "there is no adapter -1"),
        ({"text": "a", "layer": 99}, "there is no layer 99"),
        ({"text": "a", "head": -1}, "there is no head -1"),
        ({"text": "a", "scale": float("nan")}, r"scale must be in \[0, 2\], got nan"),
        ({"text": "a", "scale": 2.5}, "scale must be"),
        ({"text": "a", "position": 1.5}, "position has the wrong type"),
        ({"text": "\ud800"}, "unpaired surrogates"),
    ],
    ids=str,
)
def test_a_request_that_cannot_be_answered_is_one_sentence(page, view, problem):
    with pytest.raises(InputError, match=problem):
        page.look(View(**view))


def test_a_classifier_is_refused(base):
    decoder, tokenizer = base
    for method in (adapt.FrozenHead(decoder, 2), adapt.FineTune(decoder, layers="output", classes=2)):
        with pytest.raises(InputError, match=r"mine is a F.*, a classifier; a language model is needed"):
            Page("tiny", decoder, tokenizer, [("mine", method)])


def test_numbers_that_exceed_float16_are_looked_at_in_float32(monkeypatch):
    """A text of one token is multiplied in float16."""
    monkeypatch.setattr(decoding, "LARGE", 0)
    monkeypatch.setattr(decoding, "half_is_slow", lambda: False)
    decoder = random_decoder(STYLES["Llama"]).float()
    with torch.no_grad():
        decoder.blocks[0].feed_forward.up.weight.mul_(1e6)
        decoder.blocks[0].feed_forward.down.weight.mul_(1e-6)
        expected = decoder(torch.tensor([[3]])).log_softmax(-1)
    looked = Pass(decoder)
    looked.run([3])
    assert looked.states.isfinite().all()
    assert torch.allclose(lens(looked.decoder, looked.states[-1:]), expected, atol=1e-5)
