"""Gradient descent, one loop for every method, and what saves it work.

schedule          TrainingSettings, and the learning rate of each step
learners          the gradient of a step and the AdamW update, in torch
numpy_learner     the same by the numpy reference, in float64
methods           the methods by name: options, defaults, and how each is built
loop              epochs, batches, validation, the best epoch: `train`
checkpoints       a run on disk, which resumes bit for bit
activation_cache  the hidden states below the lowest trained layer, computed once
feature_cache     a frozen decoder's features on disk
pretraining       a decoder from scratch: packed rows, the loss, the held-out loss
tokenizers        tokenizers trained on a text
"""
