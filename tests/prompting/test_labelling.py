"""A label's score is its log-probability after the whole prompt; content-free texts use the same prompt."""

from dataclasses import replace

import torch

from minillm.data.templates import Question, task_template
from minillm.ops.softmax import log_softmax
from minillm.prompting.calibration import CONTENT_FREE, calibrated
from minillm.prompting.labelling import channel_scores, content_free_questions, label_scores, turned
from minillm.prompting.prompt_cache import PromptCache
from minillm.prompting.scoring import answer_scores
from tests.prompting.asked import DECODER, TASK, TOKENIZER, TRAIN, tokens_processed
from tests.tolerances import assert_close

ANSWERS = (" the", " not at all", " café")
SHARED = task_template(TASK, TRAIN[:4])
QUESTIONS = [Question(SHARED, text) for text in ("a", "a longer text", "", "the film is 12")]


def whole(questions, answers=ANSWERS):
    """One prompt at a time, without a cache."""
    ids = [TOKENIZER.encode(answer) for answer in answers]
    with torch.no_grad():
        return torch.cat([answer_scores(DECODER, [question.encode(TOKENIZER)], ids) for question in questions])


def test_scores_and_calibration_equal_those_of_prompts_one_by_one():
    content_free = content_free_questions(QUESTIONS)
    assert [question.text for question in content_free] == list(CONTENT_FREE)
    found = label_scores(PromptCache(DECODER), TOKENIZER, QUESTIONS, content_free, ANSWERS)
    assert_close(found.scores, whole(QUESTIONS), "law")
    assert_close(found.after()["acc"], calibrated(whole(QUESTIONS), whole(content_free)[None]), "law")
    start = torch.tensor([[TOKENIZER.bos, *TOKENIZER.encode(" the")]])
    assert_close(found.prior[0], log_softmax(DECODER(start))[0, 0, start[0, 1]], "law")
    assert_close(found.before()["acc_norm"][:, 2], whole(QUESTIONS)[:, 2] / 4, "law")


def test_the_end_of_answers_that_begin_alike_is_scored_everywhere():
    """In the shown format, a newline follows each answer."""
    answers, content_free = (" not", " not at all"), content_free_questions(QUESTIONS)
    found = label_scores(PromptCache(DECODER), TOKENIZER, QUESTIONS, content_free, answers)
    ended = [f"{answer}\n" for answer in answers]
    assert_close(found.scores, whole(QUESTIONS, ended), "law")
    assert_close(found.content_free[0], whole(content_free, ended), "law")
    with torch.no_grad():
        prior = answer_scores(DECODER, [[TOKENIZER.bos]], [TOKENIZER.encode(answer) for answer in ended])[0]
    assert_close(found.prior, prior, "law")


def test_questions_with_different_examples_have_their_own_content_free_prompts():
    own = [Question(task_template(TASK, [TRAIN[n]]), question.text) for n, question in enumerate(QUESTIONS)]
    content_free = content_free_questions(own)
    assert len(content_free) == len(own) * len(CONTENT_FREE)
    found = label_scores(PromptCache(DECODER), TOKENIZER, own, content_free, ANSWERS).after()["acc"]
    for row, question in enumerate(own):
        alone = label_scores(PromptCache(DECODER), TOKENIZER, [question], content_free_questions([question]), ANSWERS)
        assert_close(found[row], alone.after()["acc"][0], "law")


def test_the_scores_of_a_content_free_question_are_equal_after_calibration():
    """With one content-free text; with several the probabilities of their mean are equal."""
    question = Question(SHARED, CONTENT_FREE[0])
    found = label_scores(PromptCache(DECODER), TOKENIZER, [question], [question] * len(CONTENT_FREE), ANSWERS)
    for name, scores in found.after().items():
        assert_close(scores.exp(), torch.full((1, 3), 1 / 3, dtype=torch.float64), "law", name)


def test_the_examples_are_processed_once_for_rows_and_content_free_texts_together():
    questions = [Question(task_template(TASK, TRAIN[:8]), f"film {n}") for n in range(100, 150)]
    content_free = content_free_questions(questions)
    with tokens_processed() as processed:
        found = label_scores(PromptCache(DECODER), TOKENIZER, questions, content_free, (" no", " yes"))
    lengths = [len(question.encode(TOKENIZER)) for question in [*questions, *content_free]]
    assert found.tokens == processed[0] + sum(length - processed[0] for length in lengths)
    assert processed[0] > lengths[0] * 0.8
    assert sum(processed) < sum(lengths) / 4


def test_labels_in_a_chat_have_no_leading_space():
    chat = [question._replace(template=replace(SHARED, chat=True)) for question in QUESTIONS]
    found = label_scores(PromptCache(DECODER), TOKENIZER, chat, content_free_questions(chat), ANSWERS)
    assert_close(found.scores, whole(chat, [answer.lstrip() for answer in ANSWERS]), "law")


def test_a_prompt_is_turned_around_with_its_examples():
    assert turned(Question(task_template(TASK), "good"), " positive") == ("Sentiment: positive\nReview:", " good")
    template = replace(SHARED, shots=SHARED.shots[:2], instruction="Films.", end=".")
    shown = [f"Sentiment:{shot.answer}.\nReview: {shot.text}" for shot in template.shots]
    prompt = "\n\n".join(["Films.", *shown, "Sentiment: bad.\nReview:"])
    assert turned(Question(template, "good"), " bad") == (prompt, " good")
    bare = replace(SHARED, question="{text}", cue=" It is", shots=())
    assert turned(Question(bare, "good"), " bad") == ("It is bad", "\ngood")


def test_channel_scores_equal_those_of_texts_one_by_one():
    """Also where an empty text has no token of its own, and without examples, where nothing is shared."""
    for questions in (QUESTIONS, [Question(task_template(TASK), "the film is 12"), Question(SHARED, "a")]):
        found = channel_scores(PromptCache(DECODER), TOKENIZER, questions, ANSWERS)
        for row, question in enumerate(questions):
            for column, answer in enumerate(ANSWERS):
                prompt, text = turned(question, answer)
                start, ids = len(TOKENIZER.prompt(prompt)), TOKENIZER.prompt(prompt + text)
                assert ids[:start] == TOKENIZER.prompt(prompt)
                with torch.no_grad():
                    each = log_softmax(DECODER(torch.tensor([ids])))[0]
                expected = sum(each[place - 1, ids[place]] for place in range(start, len(ids)))
                assert_close(found[row, column], expected, "law")
    closed = Question(replace(SHARED, question="{text}:", cue=""), "")
    assert channel_scores(PromptCache(DECODER), TOKENIZER, [closed] * 3, ANSWERS).isfinite().all()
