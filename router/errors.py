"""Errors of the router package: each is one sentence that names the thing and the reason."""


class RouterError(Exception):
    """Base of everything that router raises on purpose."""


class RowError(RouterError):
    """A data file or one of its rows cannot be used."""


class ArtefactError(RouterError):
    """A routing artefact is missing, damaged, or does not match what it is used with."""


class EncoderError(RouterError):
    """The sentence encoder cannot be built or loaded."""


class FitError(RouterError):
    """The data cannot support the fit that was asked for."""
