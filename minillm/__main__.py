"""`python -m minillm`: the command line."""

from minillm.cli import main

main()
