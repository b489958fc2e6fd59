"""Faults the user can mend: the message says what, where and what to do; the command line exits with code 2."""


class UserError(ValueError):
    """Bad input or an impossible request. The message names the file or field, the fault and the remedy."""


class GraphMismatchError(RuntimeError):
    """A network did something else when run than when it was recorded, so its stages would disagree."""


class OutOfMemory(UserError):
    """A device ran out of memory; the message says how much it had, was predicted to need, and held."""


class PartlyDone(UserError):
    """Some of the inputs are at fault, all others are done; the message lists the former. Exit code 3."""
