"""What every room stands on and none of it knows a decoder: the machine, and values on it and on the disk.

Devices and their memory (`device`), several processes (`distributed`), interrupts and progress bars; files that are
written whole or not at all (`files`); the sha256 of named tensors (`fingerprint`), the source that weights were loaded
from (`source`), and lossless differences between tensors (`delta`).
"""
