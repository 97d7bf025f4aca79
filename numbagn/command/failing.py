"""How a command ends that cannot go on."""

import sys

__all__ = ["fail"]


def fail(message: str, code: int = 2) -> int:
    """Say on stderr, in one line, what is wrong; gives the exit code."""
    print("numbagn: error:", " ".join(message.split()), file=sys.stderr)
    return code
