"""Camera and light of one virtual capture."""

from __future__ import annotations

import numpy as np

from pinspect.virtual_line.setups import LineSetup

_AMBIENT = 0.25  # share of light without a direction


class Camera:
    """A pinhole camera above the connector, and the place of the connector below it.

    Args:
        setup: The line.
        rng: Source of the connector's shift and turn.
    """

    def __init__(self, setup: LineSetup, rng: np.random.Generator) -> None:
        self.setup = setup
        self.depth = setup.camera_height - setup.pin_height
        self.focal = setup.pitch_px * self.depth
        tilt_x, tilt_y = np.radians(setup.camera_tilt)
        about_x = np.array([[1, 0, 0], [0, np.cos(tilt_x), -np.sin(tilt_x)], [0, np.sin(tilt_x), np.cos(tilt_x)]])
        about_y = np.array([[np.cos(tilt_y), 0, np.sin(tilt_y)], [0, 1, 0], [-np.sin(tilt_y), 0, np.cos(tilt_y)]])
        self.rotation = _about_z(setup.camera_roll) @ about_y @ about_x
        jitter = np.array(setup.place_jitter_px) / setup.pitch_px
        self.shift = rng.uniform(-jitter, jitter)
        self.turn = _about_z(rng.uniform(-setup.turn, setup.turn))
        self.eye = np.array(setup.camera_offset)

    def place(self, points: np.ndarray) -> np.ndarray:
        """Map points of the connector (..., 3), in pitches, to the world, where lamps and camera stand."""
        world = points @ self.turn.T
        world[..., :2] += self.shift
        return world

    def project(self, points: np.ndarray) -> np.ndarray:
        """Project points of the connector (..., 3), x right, y down, z up, in pitches, to px (..., 2)."""
        return self.project_world(self.place(points))

    def project_world(self, points: np.ndarray) -> np.ndarray:
        """Project points of the world (..., 3), in pitches, to px (..., 2)."""
        # A rotation about the middle of the pins' tops keeps the field centered at any tilt.
        seen = (points - [0, 0, self.setup.pin_height]) @ self.rotation.T
        flat = (seen[..., :2] - self.eye) / (self.depth - seen[..., 2:]) + self.eye / self.depth
        flat = flat * (1 + self.setup.lens_k1 * (flat**2).sum(-1, keepdims=True) * 4)
        return flat * self.focal + np.array(self.setup.center_px)

    def distance_from_axis(self, feet: np.ndarray) -> np.ndarray:
        """Return how far points of the floor (n, 3) stand off the point below the camera, in pitches: (n,)."""
        return np.linalg.norm(self.place(feet)[:, :2] - self.eye, axis=1)


class Light:
    """The lamps of one capture.

    Attributes:
        places: float64 (lamps, 3), in pitches.
        colors: float64 (lamps, 3), RGB brightness of each lamp.
        softness_px: Width of the shadows' edges.
    """

    def __init__(self, setup: LineSetup, rng: np.random.Generator) -> None:
        power = rng.uniform(*setup.light_range)
        tint = 1 + np.array([1.0, 0.0, -1.0]) * rng.normal(0, setup.tint) + rng.normal(0, setup.tint / 3, 3)
        places, colors = [], []
        for lamp in setup.lamps:
            jitter = np.array(lamp.place_jitter)
            places.append(lamp.place + rng.uniform(-jitter, jitter))
            colors.append(power * lamp.power * (1 + rng.uniform(-1, 1) * lamp.power_jitter) * tint * lamp.color)
        self.places, self.colors = np.array(places), np.array(colors)
        self.softness_px = rng.uniform(*setup.shadow_softness_px)

    def shares(self, points: np.ndarray) -> np.ndarray:
        """Return the relative brightness of an upward-facing surface by each lamp.

        Args:
            points: Points of the world (..., 3), in pitches.

        Returns:
            float64 (lamps, ...).
        """
        towards = self.places.reshape(len(self.places), *(1,) * (points.ndim - 1), 3) - points
        distance = np.linalg.norm(towards, axis=-1)
        height = self.places[:, 2].reshape(len(self.places), *(1,) * (points.ndim - 1))
        # Lambert's law; a wide lamp and reflected light soften the inverse square of the distance.
        fall = (towards[..., 2] / distance) * (height / distance) ** 1.2
        return _AMBIENT + (1 - _AMBIENT) * fall

    def at(self, points: np.ndarray) -> np.ndarray:
        """Return the RGB brightness (..., 3) of an upward-facing surface at points of the world (..., 3)."""
        return np.tensordot(self.shares(points), self.colors, axes=(0, 0))


def _about_z(degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
