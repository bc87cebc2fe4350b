"""The one exception a user of `accel` is meant to see."""


class AccelError(Exception):
    """Bad input or an impossible request; the message names the value and the remedy.

    The command line prints it on one line and exits with code 2. Library code raises it directly, so that a
    caller can catch one type.
    """
