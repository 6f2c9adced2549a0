"""Mutations of the prompts, each of which a test must detect; as in `tests/mutations.py`."""

from tests.mutations import mutation

TEMPLATE, BOUNDARY, EXTRACTION = (
    (f"data/{name}.py", f"data/test_{name}.py") for name in ("templates", "boundary", "extraction")
)
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
    mutation("examples without their chains", TEMPLATE, "{CHAIN_CUE} {shot.chain}{self", "{CHAIN_CUE}{self"),
    mutation("a space at the start of a turn", TEMPLATE, "(self.answer_start + generated).lstrip()",
        "(self.answer_start + generated)"),
    mutation("bos left out", ("tokenizer.py", TEMPLATE[1]), "if ids := start + self", "if ids := self"),
    mutation("a prompt of training without its start", ("data/exchanges.py", GENERATE[1]), "tokenizer.prompt(",
        "tokenizer.encode("),
    mutation("an answer with another leading space", "tokenizer.py", "._encoded(self._within, text)",
        "._encoded(self.pipeline, text)"),
    mutation("an adapter's template left out", GENERATE, 'usage.prompt or "{text}"', '"{text}"'),
    mutation("a template applied twice", GENERATE, "self.raw or (self.chat and not usage.chat)", "False"),
    mutation("a conclusion that stands twice", TEMPLATE, ".split(self.conclusion)[0]", ""),
    mutation("ends for the answers that begin others alone", ANSWERS, "[[*ids, end] for ids in encoded]",
        "[[*ids, end] if ids in _alike(encoded) else ids for ids in encoded]"),
    mutation("an end for all sets", ANSWERS, "if not (alike := _alike(encoded)):",
        "if (alike := _alike(encoded)) is None:"),
    mutation("an end that merges with its answer", ANSWERS, "if kept and len", "if len"),
    mutation("examples that do not show the end", (TEMPLATE[0], ANSWERS[1]),
        "not (self.shots or self.end)", "not self.end"),
    mutation("a trailing space let through", BOUNDARY, 'if prompt.endswith(" "):', "if False:"),
    mutation("a shared token let through", BOUNDARY, "!= before + tokenizer.encode(answer):",
        "== tokenizer.encode(answer):"),
    mutation("the farthest examples", CHOOSING, "cosines.topk(count)", "cosines.topk(count, largest=False)"),
    mutation("the nearest example first", CHOOSING, ".indices.flip(-1)", ".indices"),
    mutation("dot products for cosines", CHOOSING, "F.normalize(found, dim=-1)", "found"),
    mutation("an order twice", CHOOSING, "if order not in found:", "if True:"),
    mutation("a start processed again for each row", CACHE, "prompt[len(self.start) :] for", "prompt for"),
    mutation("a start of which a token is lost", CACHE, "torch.tensor([self.start],", "torch.tensor([self.start[1:]],"),
    mutation("a start that leaves a row nothing", CACHE, "for row in rows) - 1)", "for row in rows))"),
    mutation("the token after the target", SCORING, "range(len(prompt) - 1, len(prompt) +",
        "range(len(prompt), len(prompt) + 1 +"),
    mutation("a prompt processed for every answer", SCORING, "different = list(dict.fromkeys(inputs))",
        "different = list(inputs)"),
    mutation("another branch's answer", SCORING, "if _starts_with(some, answer[:-1]))", "if True)"),
    mutation("lengths with the space", MEASURES, 'answer.removeprefix(" ") for', "answer for"),
    mutation("bytes for characters", MEASURES, "[len(w) for w in words]", "[len(w.encode()) for w in words]"),
    mutation("mutual information with the wrong sign", MEASURES, "scores - unconditional", "scores + unconditional"),
    mutation("a mean of log-probabilities", CALIBRATION, ".exp().mean(1).log()", ".mean(1)"),
    mutation("probabilities over all words", CALIBRATION, "(log_softmax(scores) - expected)",
        "(scores * 2 - expected)"),
    mutation("a stop text that stays", ANSWERING, "_cut(tokenizer.decode", "(lambda text, _: text)(tokenizer.decode"),
    mutation("the same seed for all samples", ANSWERING, "settings.seed + 10_000 * sample", "settings.seed"),
    mutation("a second stage without the first", ANSWERING,
        "_replace(generated=questions[n].template.conclude(found[n]))",
        "_replace(generated=questions[n].template.conclusion)"),
    mutation("answers in the order of their lengths", ANSWERING, "in zip(batch, new.tolist(), strict=True)",
        "in zip(sorted(batch), new.tolist(), strict=True)"),
    mutation("the first number there is", EXTRACTION, "flexible[-1]", "flexible[0]"),
    mutation("the shortest label that fits", EXTRACTION, "key=len, reverse=True", "key=len"),
    mutation("a longer label's start", EXTRACTION, "if self.alone else", "if False else"),
    mutation("a part of a number", EXTRACTION, "(?!\\w|[.,]\\d)", ""),
    mutation("a missing answer that is counted", EXTRACTION, "if answer is not None)", ")"),
    mutation("a prefix that takes no room", LENGTHS, "self.context - self.prefix - self.answer",
        "self.context - self.answer"),
    mutation("one token too few of a text", LENGTHS, "return part(most)", "return part(most - 1)"),
    mutation("the wrong side of a text", LENGTHS, 'if side == "right"', 'if side == "left"'),
    mutation("one set of content-free texts for all", LABELLING, "templates = templates[:1]",
        "templates = templates[:2]"),
    mutation("content-free texts in the wrong template", LABELLING, "[order.argsort()]", ""),
]
