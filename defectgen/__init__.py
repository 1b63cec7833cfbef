"""defectgen: labelled defect images for inspection models."""

import os

# OpenCV reads it once, when it loads; what is wrong with a file is told by our own line.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")

__version__ = "0.1.0"
