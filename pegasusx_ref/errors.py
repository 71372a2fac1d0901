"""The package's errors; each is also the built-in exception that a caller would expect."""

import re
import reprlib

MAX_LENGTH = 1000  # characters of a message
MAX_VALUE_LENGTH = 80  # characters of a value in a message
# C0, DEL and C1, marks and overrides of the writing direction, line and paragraph separators, undecodable bytes
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_REPR = reprlib.Repr()  # repr itself may take forever: lists may share their parts
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = _REPR.maxfrozenset = 20
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = 2 * MAX_VALUE_LENGTH


class PegasusXError(Exception):
    """Base class: one line that names the value, the limit and the remedy.

    Args:
        message: control characters, as in hostile file names, are escaped; very long messages are shortened.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shortened(printable(message), MAX_LENGTH))


class ConfigError(PegasusXError, ValueError):
    """An invalid configuration."""


class InputError(PegasusXError, ValueError):
    """Invalid token ids, masks or other arguments."""


class InputTypeError(InputError, TypeError):
    """An argument of a wrong type."""


class CheckpointError(PegasusXError, OSError):
    """A checkpoint folder that is incomplete, corrupt, or belongs to another model."""


class OutputError(PegasusXError, OSError):
    """A file that cannot be written."""


class BackendError(PegasusXError, RuntimeError):
    """A backend that is unknown, cannot run here, or does not support the requested dtype."""


class NumericsError(PegasusXError, ArithmeticError):
    """Logits, a loss or gradients that are NaN or infinite, so that no text can be generated or no step taken."""


class ExtraError(PegasusXError, ImportError):
    """A missing package that one of this package's extras installs."""


def printable(text: str) -> str:
    """Escape line breaks, control characters and undecodable bytes, so that a terminal shows them as text."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def shortened(text: str, length: int) -> str:
    """Leave out the middle of a long text."""
    head = 2 * length // 3
    return text if len(text) <= length else f"{text[:head]} … {text[head + 3 - length :]}"


def shown(value: object) -> str:
    """Write a value for a message, whatever it is: on one line, and short."""
    try:
        return shortened(printable(_REPR.repr(value)), MAX_VALUE_LENGTH)
    except Exception:  # an integer of 5,000 digits, an object's own __repr__
        return f"a {type(value).__name__}"


def reason(error: BaseException) -> str:
    """Write why something failed, by an exception of any library: its first line, or its kind."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, KeyError):
        return f"{error} is missing"
    try:
        text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    except Exception:  # its own __str__
        return "no message"
    return text.strip().split("\n")[0] or type(error).__name__
