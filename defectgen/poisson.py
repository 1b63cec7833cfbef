"""The improved Poisson blender, for programs: `defectgen.imaging.poisson` under its public name."""

from defectgen.imaging.poisson import Blender, Mode, blend, boundary_weights

__all__ = ["Blender", "Mode", "blend", "boundary_weights"]
