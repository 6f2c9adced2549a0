"""What prompts have in common is read once, and nothing is different for it but the count of tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from minillm.data.templates import Question, task_template
from minillm.prompting.prompt_cache import PromptCache, common_start
from minillm.prompting.scoring import answer_scores, score_all
from tests.decoders import STYLES, random_decoder
from tests.prompting.asked import DECODER, TASK, TOKENIZER, TRAIN, tokens_read
from tests.tolerances import assert_close

PROMPTS = [[8, 8, 1, 3, 1, 4, 1, 5], [8, 8, 1, 9, 2], [8, 8, 1, 6, 5, 3]]
QUESTIONS = [Question(task_template(TASK, TRAIN[:8]), f"film number {n}") for n in range(100, 140)]


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=4))
def test_what_prompts_have_in_common_is_the_longest_start_that_leaves_each_a_token(rows):
    shared = common_start(rows)
    assert all(row[:shared] == rows[0][:shared] and len(row) > shared for row in rows)
    assert any(row[: shared + 1] != rows[0][: shared + 1] or len(row) == shared + 1 for row in rows)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("answers", [[[5], [7]], [[5, 1], [7], [5, 3, 2]]])
@pytest.mark.parametrize("rung", ["law", "law in float32"])
def test_scores_behind_a_cached_start_are_those_of_the_whole_prompts(style, answers, rung):
    decoder = random_decoder(STYLES[style])
    if rung == "law in float32":
        decoder = decoder.float()
    cached = PromptCache(decoder).process(PROMPTS)
    assert cached.shared == 3
    found, whole = (answer_scores(model, rows, answers).exp() for model, rows in
                    ((cached.model, cached.rests), (decoder, PROMPTS)))  # fmt: skip
    assert_close(found, whole, rung)


def test_prompts_with_nothing_in_common_are_read_as_they_are():
    cached = PromptCache(DECODER).process([[3, 1], [4, 1]])
    assert (cached.shared, cached.rests, cached.tokens) == (0, [[3, 1], [4, 1]], 4)
    assert cached.model is DECODER


def test_the_examples_of_a_few_shot_prompt_are_read_once_whatever_the_number_of_queries():
    prompts = [question.encode(TOKENIZER) for question in QUESTIONS]
    with tokens_read() as read:
        cached = PromptCache(DECODER).process(prompts)
        score_all(
            lambda batch: answer_scores(cached.model, [cached.rests[n] for n in batch], [[5], [7]]),
            [len(rest) for rest in cached.rests],
        )
    examples = len(TOKENIZER.encode(task_template(TASK, TRAIN[:8]).render("")))
    assert read[0] == cached.shared > examples - 10
    # The queries are of one length, so that there is no padding.
    assert sum(read) == cached.tokens == cached.shared + sum(len(prompt) - cached.shared for prompt in prompts)
    assert cached.tokens < sum(map(len, prompts)) / 6


def test_a_query_costs_the_multiplications_of_its_own_tokens_and_the_head_of_its_last_alone():
    prompts = [question.encode(TOKENIZER) for question in QUESTIONS[:4]]
    cached = PromptCache(DECODER).process(prompts)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        answer_scores(cached.model, cached.rests, [[5], [7]])
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    blocks = sum(matrix.weight.numel() for matrix in DECODER.blocks.modules() if isinstance(matrix, torch.nn.Linear))
    tokens = 4 * len(cached.rests[0])
    assert counted == 2 * tokens * blocks + 2 * 4 * DECODER.head.weight.numel()


def test_a_cached_start_is_not_processed_again_for_prompts_that_come_after():
    cache, prompts = PromptCache(DECODER), [question.encode(TOKENIZER) for question in QUESTIONS]
    first = cache.process(prompts)
    with tokens_read() as read:
        again = cache.process([[*prompt, 5, 6] for prompt in prompts[:1]])
    assert read == []
    assert again.shared == first.shared
    assert again.tokens == len(prompts[0]) + 2 - first.shared


def test_a_start_that_is_not_theirs_or_only_a_small_part_of_it_is_not_used():
    cache, prompts = PromptCache(DECODER), [question.encode(TOKENIZER) for question in QUESTIONS]
    for before, asked in (
        ([[5, 6], [5, 7]], prompts),
        (prompts, [[5, 6, 7], [5, 6, 8]]),
        ([[*prompts[0], 5]], prompts),
    ):
        cache.process(before)
        found, new = cache.process(asked), PromptCache(DECODER).process(asked)
        assert (found.shared, found.tokens) == (new.shared, new.tokens)
        assert_close(found.score([[5], [7]]), new.score([[5], [7]]), "law")
