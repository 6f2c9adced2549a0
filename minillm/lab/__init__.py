"""Experiments, one file each: a dataclass of options, which is the command, and the `run` that does the work.

experiment     the base and its tokenizer on a device, and a classifier measured on a task: what the commands share
ladder         `minillm ladder`: one task, one base, every method
adapt          `minillm adapt`: one method, and the adapter it saves
free_answers   adapting to free answers
prompt         `minillm prompt`; asking, lecture and prompt_report are its parts
pretrain       `minillm pretrain`: a tiny language model from scratch
juggler        `minillm lab juggler`: does a chain of thought help a tiny model?
check          `minillm check`: the ladder of trust
report         tables, pictures and standard errors
"""
