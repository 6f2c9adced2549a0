"""The operations of `ops` as GPU kernels, in Triton, and one of them in CUDA C++. README.md lists the files."""
