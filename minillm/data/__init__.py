"""Text in: what is read from files or generated, and how it becomes prompts and batches.

tasks          labelled text in two or more classes: Task, and how its rows are divided
tables         the user's own CSV or JSON lines
reviews        the task `reviews`: film reviews, negative or positive
word_problems  generated problems with worked solutions, and the task made of them
exchanges      prompts with free answers
text           text to pretrain on
labels         texts and labels as a caller gives them
templates      from a text to a prompt: zero-shot, few-shot, chain of thought, chat
boundary       where a prompt's tokens end and an answer's begin
extraction     the answer in a generated text, strictly or flexibly
batches        rows of unequal length in one tensor
"""
