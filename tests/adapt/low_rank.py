"""Low-rank methods as if they had been trained."""

import torch


def moved(method, seed=0):
    """With something added to all that is trained: B is no longer 0, and a bias not the base's."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in method.trainable().values():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return method
