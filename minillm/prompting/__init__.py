"""Asking a model by its prompt (place 1 of figure 1), one idea a file.

template     what is asked, as a value: zero-shot or few-shot, with a chain of thought or without, plain or as a chat
choosing     which solved examples are shown, and in what order
boundary     where a prompt's tokens end and an answer's begin
kept         what all prompts have in common is read once
scoring      log P(answer | prompt)
measures     acc, acc_norm, acc_bytes, acc_mutual_info: what the scores are divided by or compared with
calibration  what the prompt alone says, taken out of its answers
answering    free answers, in one stage or two, and the majority of several
extraction   the answer in a text: strictly, flexibly or not at all
"""
