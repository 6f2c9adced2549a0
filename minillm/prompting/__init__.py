"""Place 1 of figure 1, the prompt: asking a model without training it, one idea a file.

choosing      which solved examples a prompt shows, and in what order
prompt_cache  what all prompts have in common is processed once
scoring       log P(answer | prompt)
measures      acc, acc_norm, acc_bytes, acc_mutual_info: what the scores are divided by or compared with
calibration   what the prompt prefers whatever the text, taken out of its answers
labelling     the scores of all labels, before and after calibration
fitting       fitting a method to labels or to answers in words: `minillm.train`
answering     generated answers, in one stage or two, and the majority of several
generate      `minillm generate`

Templates, and the answer in a generated text, are in `minillm.data`.
"""
