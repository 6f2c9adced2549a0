"""Methods as if they had been trained."""

import torch


def moved(method, seed=0):
    """The method with noise added to its trainable parameters: B is not 0, and a bias is not the base's."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in method.trainable().values():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return method
