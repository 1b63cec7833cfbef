"""Improved Poisson blending: the public name of `defectgen.imaging.poisson`."""

from defectgen.imaging.poisson import Blender, Mode, blend, boundary_weights

__all__ = ["Blender", "Mode", "blend", "boundary_weights"]
