"""One kernel in CUDA C++, with all that Triton does for us: a chapter to read and compile, which is never chosen."""
