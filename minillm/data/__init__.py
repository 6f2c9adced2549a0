"""Data: from files and generators to prompts and batches.

tasks          labelled text in two or more classes, divided into train, validation and test
tables         a user's CSV or JSON lines
reviews        the task `reviews`: film reviews, negative or positive
word_problems  generated problems with worked solutions, and the task `word_problems`
exchanges      prompts with free answers
text           text to pretrain on
labels         validation of texts and labels
templates      prompts: zero-shot, few-shot, chain of thought, chat
boundary       the token boundary between prompt and answer
extraction     the answer in generated text, strict or flexible
batches        padding and length buckets
"""
