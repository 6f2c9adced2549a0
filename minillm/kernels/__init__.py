"""The operations of `ops` as GPU kernels, in Triton: Python that is compiled for a GPU, a block of numbers at a time.

Each file opens with its ladder: the plain program, what it reads and writes, and what fusing it saves. Then comes the
kernel, the launcher that chooses its blocks, and the operation with `ops`' own signature, registered with torch
(`torch.library.custom_op`), so that autograd and torch.compile take it as one of theirs. `norm.py` is the shortest.

All of it also runs on a CPU, in triton's interpreter, if TRITON_INTERPRET=1 is set before triton is imported: slowly,
and number for number against the numpy reference. `minillm.ops` imports these files, when it needs them.
"""
