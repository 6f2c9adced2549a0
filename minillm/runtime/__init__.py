"""The machine, files and named tensors: everything the other rooms build on, without knowledge of a decoder."""
