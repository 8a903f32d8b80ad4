"""The one class of errors that a user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """An input, a file or a setting that cannot be used; the message says the rule, the value and the way out.

    The command line prints it as one message, without a traceback. Everything else that is raised is a defect.
    """
