"""The operations of figure 1 as formulas, in plain torch: the definition that everything else is compared with.

Pure functions on tensors, differentiated by autograd, that own no parameters and call each other. Each file has the
same name in `reference` (numpy, forward and backward by hand), and where something faster exists in `fast` and
`kernels`. The decoder and the methods call them through `minillm.operations`, which chooses.
"""
