"""The one class of errors that a user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """Raised for an invalid input, file or setting; the message states the rule, the value and the fix.

    The command line prints it as one message, without a traceback. Any other exception is a bug.
    """
