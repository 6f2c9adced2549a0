"""One kernel again, in CUDA C++: what Triton hides. A chapter to read and to compile, which `ops` never chooses."""
