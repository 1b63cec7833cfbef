"""The version, apart from all else, so that any part can say which defectgen it is of."""

__version__ = "0.1.0"
