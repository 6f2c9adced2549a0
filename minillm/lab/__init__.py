"""Experiments, one file each: a dataclass of options, which is the command, and functions that do the work.

experiment     what the commands share: base, task and device, and the measurements of a classifier
ladder         `minillm ladder`: one task, one base, every method
adapt          `minillm adapt`: one method; saves the adapter
free_answers   adaptation to free answers
prompt         `minillm prompt`; asking, lecture and prompt_report are its parts
pretrain       `minillm pretrain`: a tiny language model from scratch
juggler        `minillm lab juggler`: does a chain of thought help a tiny model?
check          `minillm check`: the ladder of trust
report         tables, plots and standard errors
"""
