"""The operations of `ops` as GPU kernels, in Triton: Python that is compiled for a GPU and works on blocks of elements.

Each file opens with its cost table: the plain program, the bytes that it reads and writes, and the gain of fusing it.
Then come the kernel, the launcher that chooses its blocks, and the operation with the signature of `ops`, registered
with torch (`torch.library.custom_op`), so that autograd and torch.compile treat it like their own. `norm.py` is the
shortest, and `cuda/` has the same kernel in CUDA C++.

All kernels also run on a CPU, slowly, in triton's interpreter, if TRITON_INTERPRET=1 is set before triton is imported:
there the tests compare them with the numpy reference. `minillm.operations` imports these files when it needs them.
"""
