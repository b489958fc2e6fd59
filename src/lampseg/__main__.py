"""`python -m lampseg` is the command `lampseg`."""

from lampseg.cli import main

main()
