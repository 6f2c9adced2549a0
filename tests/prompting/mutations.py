"""Mutations of the prompts, each of which a test must detect; as in `tests/mutations.py`."""

from tests.mutations import mutation

TEMPLATE, BOUNDARY, EXTRACTION = (
    (f"data/{name}.py", f"data/test_{name}.py") for name in ("templates", "boundary", "extraction")
)
CONVERSATIONS = ("data/conversations.py", "data/test_conversations.py")
ANSWERS = ("data/answers.py", "data/test_answers.py")
CHOOSING, CACHE, SCORING, MEASURES, CALIBRATION, ANSWERING, LABELLING, LENGTHS, GENERATE = (
    (f"prompting/{name}.py", f"prompting/test_{name}.py")
    for name in (
        "choosing",
        "prompt_cache",
        "scoring",
        "measures",
        "calibration",
        "answering",
        "labelling",
        "lengths",
        "generate",
    )
)


# fmt: off
PROMPTING_MUTATIONS = [
    mutation("examples without their chains", TEMPLATE, "f'{CHAIN_CUE} {shot.chain}{self.conclusion}'",
        "f'{CHAIN_CUE}{self.conclusion}'"),
    mutation("a space at the start of a turn", TEMPLATE, "(self.answer_start + generated).lstrip()",
        "self.answer_start + generated"),
    mutation("bos left out", ("tokenizer.py", TEMPLATE[1]), "start + self._encoded(self.pipeline, text)",
        "self._encoded(self.pipeline, text)"),
    mutation("a prompt of training without its start", (TEMPLATE[0], GENERATE[1]), "tokenizer.prompt",
        "tokenizer.encode"),
    mutation("an answer trained without its end", CONVERSATIONS, "range(len(prompt), end + 1)",
        "range(len(prompt), end)"),
    mutation("a conversation trained with its prompts", CONVERSATIONS, "range(len(prompt), end + 1)", "range(end + 1)"),
    mutation("a history that is not that of inference", CONVERSATIONS,
        "ids[:len(rows[-1].ids)] == rows[-1].ids", "True"),
    mutation("the tags of a template ignored", CONVERSATIONS, "n in spanned or not tagged", "True"),
    mutation("an ambiguous template accepted", CONVERSATIONS, "ids[:len(prompt)] != prompt", "False"),
    mutation("an answer with another leading space", "tokenizer.py", "self._within", "self.pipeline", "encode"),
    mutation("an adapter's template left out", GENERATE, "usage.prompt or '{text}'", "'{text}'"),
    mutation("a template applied twice", GENERATE, "self.raw or self.chat and not usage.chat", "False"),
    mutation("a conclusion that stands twice", TEMPLATE,
        "answer.removeprefix(self.answer_start).split(self.conclusion)[0]", "answer.removeprefix(self.answer_start)"),
    mutation("ends for the answers that begin others alone", ANSWERS, "[*ids, end]",
        "[*ids, end] if ids in _alike(encoded) else ids"),
    mutation("an end for all sets", ANSWERS, "not (alike := _alike(encoded))", "(alike := _alike(encoded)) is None"),
    mutation("an end that merges with its answer", ANSWERS, "kept and len(next_tokens) == 1", "len(next_tokens) == 1"),
    mutation("examples that do not show the end", (TEMPLATE[0], ANSWERS[1]), "self.shots or self.end", "self.end"),
    mutation("a trailing space let through", BOUNDARY, "prompt.endswith(' ')", "False"),
    mutation("a shared token let through", BOUNDARY,
        "tokenizer.encode(prompt + answer) != before + tokenizer.encode(answer)",
        "tokenizer.encode(prompt + answer) == tokenizer.encode(answer)"),
    mutation("the farthest examples", CHOOSING, "cosines.topk(count)", "cosines.topk(count, largest=False)"),
    mutation("the nearest example first", CHOOSING, "cosines.topk(count).indices.flip(-1)",
        "cosines.topk(count).indices"),
    mutation("dot products for cosines", CHOOSING, "F.normalize(found, dim=-1)", "found"),
    mutation("an order twice", CHOOSING, "order not in found", "True"),
    mutation("a start processed again for each row", CACHE, "prompt[len(self.start):]", "prompt"),
    mutation("a start of which a token is lost", CACHE, "[self.start]", "[self.start[1:]]"),
    mutation("a start that leaves a row nothing", CACHE, "min(len(row) for row in rows) - 1",
        "min(len(row) for row in rows)"),
    mutation("the token after the target", SCORING, "range(len(prompt) - 1, len(prompt) + len(some))",
        "range(len(prompt), len(prompt) + 1 + len(some))"),
    mutation("a prompt processed for every answer", SCORING, "dict.fromkeys(inputs)", "inputs"),
    mutation("another branch's answer", SCORING, "_starts_with(some, answer[:-1])", "True"),
    mutation("lengths with the space", MEASURES, "answer.removeprefix(' ')", "answer"),
    mutation("bytes for characters", MEASURES, "len(w)", "len(w.encode())"),
    mutation("mutual information with the wrong sign", MEASURES, "scores - unconditional", "scores + unconditional"),
    mutation("a mean of log-probabilities", CALIBRATION, "log_softmax(content_free).exp().mean(1).log()",
        "log_softmax(content_free).mean(1)"),
    mutation("probabilities over all words", CALIBRATION, "log_softmax(scores)", "scores * 2"),
    mutation("a stop text that stays", ANSWERING, "_cut", "lambda text, _: text"),
    mutation("the same seed for all samples", ANSWERING, "settings.seed + 10_000 * sample", "settings.seed"),
    mutation("a second stage without the first", ANSWERING, "questions[n].template.conclude(found[n])",
        "questions[n].template.conclusion"),
    mutation("answers in the order of their lengths", ANSWERING, "zip(batch, new.tolist(), strict=True)",
        "zip(sorted(batch), new.tolist(), strict=True)"),
    mutation("the first number there is", EXTRACTION, "flexible[-1]", "flexible[0]"),
    mutation("the shortest label that fits", EXTRACTION,
        "sorted((' '.join(answer.split()) for answer in answers), key=len, reverse=True)",
        "sorted((' '.join(answer.split()) for answer in answers), key=len)"),
    mutation("a longer label's start", EXTRACTION, "self.alone", "False"),
    mutation("a part of a number", EXTRACTION, "')(?!\\\\w|[.,]\\\\d)'", "')'"),
    mutation("a missing answer that is counted", EXTRACTION,
        "(answer.lower() for answer in read if answer is not None)", "(answer.lower() for answer in read)"),
    mutation("a prefix that takes no room", LENGTHS, "self.context - self.prefix", "self.context"),
    mutation("one token too few of a text", LENGTHS, "part(most)", "part(most - 1)"),
    mutation("the wrong side of a text", LENGTHS, "'right'", "'left'", "_part"),
    mutation("one set of content-free texts for all", LABELLING, "templates[:1]", "templates[:2]"),
    mutation("content-free texts in the wrong template", LABELLING, "torch.cat(found)[order.argsort()]",
        "torch.cat(found)"),
]
