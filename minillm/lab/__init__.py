"""The experiments behind the commands, one file each. README.md lists the files."""
