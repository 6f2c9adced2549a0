"""The shared prefix of prompts is processed once; scores are unchanged, and fewer tokens are processed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from minillm.data.templates import Question, task_template
from minillm.prompting.prompt_cache import PromptCache, common_start
from minillm.prompting.scoring import answer_scores
from tests.decoders import STYLES, random_decoder
from tests.prompting.asked import DECODER, TASK, TOKENIZER, TRAIN, tokens_processed
from tests.tolerances import assert_close

pytestmark = pytest.mark.checked

SHORT = [[8, 8, 1, 3, 1, 4, 1, 5], [8, 8, 1, 9, 2], [8, 8, 1, 6, 5, 3]]
PROMPTS = [Question(task_template(TASK, TRAIN[:8]), f"film number {n}").encode(TOKENIZER) for n in range(100, 140)]


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=4))
def test_the_common_start_is_the_longest_that_leaves_each_row_a_token(rows):
    shared = common_start(rows)
    assert all(row[:shared] == rows[0][:shared] and len(row) > shared for row in rows)
    assert any(row[: shared + 1] != rows[0][: shared + 1] or len(row) == shared + 1 for row in rows)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("answers", [[[5], [7]], [[5, 1], [7], [5, 3, 2]]])
@pytest.mark.parametrize("rung", ["law", "law in float32"])
def test_scores_after_a_cached_start_equal_those_of_whole_prompts(style, answers, rung):
    decoder = random_decoder(STYLES[style])
    if rung == "law in float32":
        decoder = decoder.float()
    cached = PromptCache(decoder).process(SHORT)
    assert cached.shared == 3
    whole = answer_scores(decoder, SHORT, answers)
    assert_close(answer_scores(cached.model, cached.rests, answers).exp(), whole.exp(), rung)


def test_prompts_without_a_common_start_are_processed_whole():
    cached = PromptCache(DECODER).process([[3, 1], [4, 1]])
    assert (cached.shared, cached.rests, cached.tokens) == (0, [[3, 1], [4, 1]], 4)
    assert cached.model is DECODER


def test_the_examples_of_a_few_shot_prompt_are_processed_once_for_all_queries():
    with tokens_processed() as processed:
        cached = PromptCache(DECODER).process(PROMPTS)
        cached.score([[5], [7]])
    examples = len(TOKENIZER.encode(task_template(TASK, TRAIN[:8]).render("")))
    assert processed[0] == cached.shared > examples - 10
    # The queries have equal lengths, so there is no padding.
    assert sum(processed) == cached.tokens == cached.shared + sum(len(prompt) - cached.shared for prompt in PROMPTS)
    assert cached.tokens < sum(map(len, PROMPTS)) / 6


def test_a_query_costs_the_multiplications_of_its_own_tokens_and_the_head_at_the_last_alone():
    cached = PromptCache(DECODER).process(PROMPTS[:4])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        answer_scores(cached.model, cached.rests, [[5], [7]])
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    blocks = sum(matrix.weight.numel() for matrix in DECODER.blocks.modules() if isinstance(matrix, torch.nn.Linear))
    tokens = 4 * len(cached.rests[0])
    assert counted == 2 * tokens * blocks + 2 * 4 * DECODER.head.weight.numel()


def test_a_cached_start_is_used_again_by_later_prompts():
    cache = PromptCache(DECODER)
    first = cache.process(PROMPTS)
    with tokens_processed() as processed:
        again = cache.process([[*PROMPTS[0], 5, 6]])
    assert processed == []
    assert again.shared == first.shared
    assert again.tokens == len(PROMPTS[0]) + 2 - first.shared


@pytest.mark.parametrize(
    ("before", "after"), [([[5, 6], [5, 7]], PROMPTS), (PROMPTS, [[5, 6, 7], [5, 6, 8]]), ([[*PROMPTS[0], 5]], PROMPTS)]
)
def test_another_start_or_one_that_is_too_short_is_not_used(before, after):
    cache = PromptCache(DECODER)
    cache.process(before)
    found, new = cache.process(after), PromptCache(DECODER).process(after)
    assert (found.shared, found.tokens) == (new.shared, new.tokens)
    assert_close(found.score([[5], [7]]), new.score([[5], [7]]), "law")
