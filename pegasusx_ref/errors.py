"""The errors that a user of the package may meet, all of them also the built-in kinds that one expects."""


class PegasusXError(Exception):
    """Anything that this package refuses to do, in one line that names value, limit and remedy."""


class ConfigError(PegasusXError, ValueError):
    """A configuration that describes no model."""


class InputError(PegasusXError, ValueError):
    """Token ids, masks or other arguments that the model cannot take."""


class CheckpointError(PegasusXError, OSError):
    """A checkpoint folder that is incomplete, corrupt or of another model."""


class BackendError(PegasusXError, RuntimeError):
    """A backend that is unknown, cannot run here, or does not compute in the dtype asked for."""


class ExtraError(PegasusXError, ImportError):
    """A package is missing that an extra of this one brings."""
