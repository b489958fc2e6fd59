"""The verbs, the same in Python and on the command line."""
