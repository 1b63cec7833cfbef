"""A height map with colours under one lamp, and the camera that looks at it from above.

Lengths are in cells of a grid that is `scale` times finer than the image. Arrays over the grid are [H, W] or [H, W, C];
vectors are (y, x, z) with y downwards and z towards the camera.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rng = np.random.Generator
Pixels = NDArray[np.uint8] | NDArray[np.uint16]

AMBIENT = 0.35  # the part of the light that comes from everywhere
NOWHERE = np.zeros((0, 2))


@dataclass
class Scene:
    """A surface, which defects change in place, how it shines, and what is below it."""

    scale: int
    height: Array  # [H, W], in cells
    albedo: Array  # [H, W, C], 0 to 1, linear
    gloss: Array  # [H, W], the brightness of a mirror image of the lamp
    shade: Array  # [H, W], the light that arrives, around 1
    mirror: Array  # [2, H, W], the slopes (y, x) at which the gloss reflects the lamp into the camera
    bare: Array  # [H, W, C], albedo of the material below the surface
    fresh: Array  # [H, W, C], albedo of the surface where it was just scratched
    below: Array  # [H, W, C], what is seen where the product ends
    solid: Array  # [H, W], 1 where the product is
    lamp: Array  # (y, x, z) of length 1, where the light comes from
    sparkle: Array = field(init=False)  # [H, W], the brightness of small bright edges and walls, which defects have
    lobe: tuple[float, float] = (0.3, 0.3)  # how far slopes can be from `mirror`, by y and x
    edge: float = 2.0  # of that reflection: 2 fades like a bell, more has a plateau, as of a lamp with a screen
    coat: float = 0.0  # thickness of a glaze over the bare material, in cells; 0: the material starts at the surface
    residue: tuple[float, ...] = (0.0,)  # albedo of a dried liquid
    opaque: tuple[float, ...] = (0.4,)  # how much of the surface that hides
    grain: float = 1.0  # how many times farther liquids spread along x than along y
    threads: float = 0.0  # pitch of a weave, which liquids follow both ways, in cells
    places: Array = field(default_factory=lambda: NOWHERE)  # [N, 2], points y, x of possible defects; none: everywhere
    rims: Array = field(default_factory=lambda: NOWHERE)  # [N, 2], points y, x of edges that can break

    def __post_init__(self) -> None:
        self.sparkle = np.zeros(self.height.shape)

    def around(self, center: Array, reach: int) -> "tuple[Scene, tuple[slice, slice]]":
        """The part of the scene within so many pixels, whose arrays are views of these, and which pixels it is."""
        sides = [
            slice(max(int(c) // self.scale - reach, 0), min(int(c) // self.scale + reach, n // self.scale))
            for c, n in zip(center, self.height.shape, strict=True)
        ]
        rows, columns = (slice(side.start * self.scale, side.stop * self.scale) for side in sides)
        parts = {name: getattr(self, name)[rows, columns] for name in _GRIDS}
        part = replace(self, **parts, mirror=self.mirror[:, rows, columns])
        part.sparkle = self.sparkle[rows, columns]
        return part, (sides[0], sides[1])


_GRIDS = ("height", "albedo", "gloss", "shade", "bare", "fresh", "below", "solid")


def flat(shape: tuple[int, int], *color: float) -> Array:
    """One colour everywhere, [H, W, C], which takes no memory and cannot be changed."""
    return np.broadcast_to(np.array(color), (*shape, len(color)))


def noise(rng: Rng, shape: tuple[int, int], sigma: float | tuple[float, float], turn: float = 0) -> Array:
    """Smooth noise with mean 0 and standard deviation 1 that repeats at the borders, [H, W].

    `sigma` is the width of the bell that smooths it, in cells, or those along y and x before a `turn` in radians.
    """
    wide = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    across, along = np.cos(turn) * fy - np.sin(turn) * fx, np.sin(turn) * fy + np.cos(turn) * fx
    bell = np.exp(-2 * np.pi**2 * ((wide[0] * across) ** 2 + (wide[1] * along) ** 2))
    smooth = np.fft.irfft2(np.fft.rfft2(rng.normal(size=shape)) * bell, s=shape)
    return np.asarray((smooth - smooth.mean()) / smooth.std())


def blur(values: Array, sigma: float) -> Array:
    """A Gaussian blur of [H, W] that repeats at the borders."""
    fy, fx = np.fft.fftfreq(values.shape[0])[:, None], np.fft.rfftfreq(values.shape[1])[None]
    bell = np.exp(-2 * np.pi**2 * sigma**2 * (fy**2 + fx**2))
    return np.asarray(np.fft.irfft2(np.fft.rfft2(values) * bell, s=values.shape))


def step(values: Array) -> Array:
    """0 below 0, 1 above 1, smooth between."""
    t = np.clip(values, 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def grid(shape: tuple[int, int]) -> tuple[Array, Array]:
    """y and x of all cells, each [H, W]."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    return y, x


def lamp(rng: Rng, turn: float, rise: float, spread: float = 0.06) -> Array:
    """The direction of a lamp `rise` radians above the table that stands `turn` radians from right, going down."""
    turn, rise = turn + rng.normal(0, spread), rise + rng.normal(0, spread / 2)
    return np.array([np.sin(turn) * np.cos(rise), np.cos(turn) * np.cos(rise), np.sin(rise)])


def falloff(rng: Rng, shape: tuple[int, int], lamp: Array, amount: float) -> Array:
    """Light that is stronger on the lamp's side, and weaker in the corners, as a lens shows it; [H, W]."""
    y, x = grid(shape)
    v, u = 2 * y / shape[0] - 1 + rng.normal(0, 0.1), 2 * x / shape[1] - 1 + rng.normal(0, 0.1)
    toward = lamp[0] * v + lamp[1] * u
    return np.asarray(rng.uniform(0.95, 1.05) * (1 + amount * toward - 0.06 * (u**2 + v**2)))


def render(scene: Scene) -> Array:
    """Light that reaches the camera, [H, W, C]: Lambert, light from everywhere less in hollows, and reflections."""
    sy, sx = np.gradient(scene.height)
    upright = 1 / np.sqrt(1 + sy**2 + sx**2)
    ly, lx, lz = scene.lamp
    facing = np.clip((lz - sy * ly - sx * lx) * upright, 0, None) / lz
    hollow = np.clip(blur(scene.height, 2.5 * scene.scale) - scene.height, 0, None) / scene.scale
    open_sky = 1 / (1 + 0.4 * hollow)
    off_y, off_x = (-sy - scene.mirror[0]) / scene.lobe[0], (-sx - scene.mirror[1]) / scene.lobe[1]
    glint = scene.gloss * np.exp(-(np.abs(off_y) ** scene.edge) - np.abs(off_x) ** scene.edge)
    # A slope halfway between the lamp and the camera reflects the one into the other.
    off = (-sy - ly / (1 + lz)) ** 2 + (-sx - lx / (1 + lz)) ** 2
    glint = (glint + scene.sparkle * np.exp(-off / 0.05)) * open_sky
    diffuse = scene.albedo * ((AMBIENT + (1 - AMBIENT) * facing) * open_sky)[..., None]
    return np.asarray((diffuse + glint[..., None]) * scene.shade[..., None])


def develop(light: Array, scale: int, gamma: float) -> Array:
    """What a lens and a sensor without noise make of it: [H / scale, W / scale, C], from 0 to about 1."""
    h, w = light.shape[0] // scale, light.shape[1] // scale
    small = light.reshape(h, scale, w, scale, -1).mean(axis=(1, 3))
    soft = np.stack([blur(small[..., c], 0.5) for c in range(small.shape[2])], axis=2)
    return np.asarray(np.clip(soft, 0, None) ** (1 / gamma))


def deviation(picture: Array) -> Array:
    """How the noise of a camera grows with the brightness, 1 in the highlights."""
    return np.asarray(np.sqrt(0.15 + 0.85 * np.clip(picture, 0, 1)))


def expose(rng: Rng, picture: Array, bits: int, grain: float) -> Pixels:
    """The picture with the noise of a camera, `grain` in the highlights; [H, W] or [H, W, 3].

    A camera of 16 bits measures 12 of them, and leaves the last four 0.
    """
    noisy = picture + grain * deviation(picture) * rng.normal(size=picture.shape)
    squeezed = np.where(noisy > 0.85, 0.85 + 0.15 * np.tanh((noisy - 0.85) / 0.15), noisy)
    levels = np.rint(np.clip(squeezed, 0, 1) * (2 ** min(bits, 12) - 1))
    values = levels[..., 0] if levels.shape[2] == 1 else levels
    return (values * 16).astype(np.uint16) if bits == 16 else values.astype(np.uint8)
