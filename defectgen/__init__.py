"""defectgen: labelled defect images for inspection models."""

__version__ = "0.1.0"
