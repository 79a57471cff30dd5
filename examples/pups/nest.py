"""A procedural mouse nest: frames, and for every frame which animal each pixel shows.

A frame is built as a height map (pixels above the nest floor) with a colour and an owner per pixel. Animals are chains of tapered capsules
stamped with a height test, so bodies that press together meet in a crease, sink into the bedding and cover one another as their heights
say; the finished surface is lit once. The owner map is what makes the labels honest: a keypoint is visible where its own animal is on top.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from motion import MOTHER_SPINE, SPINE, Motion, simulate  # type: ignore[import-not-found]  # beside this script, not in a package
from PIL import Image, ImageDraw

KEYPOINTS = ("Head", "Thorax", "Tail")
STATIONS = np.array([1.0, 3.3, SPINE - 1.0])  # of the keypoints along a pup's spine, in spine points from the snout
PUP_RADII = np.array([0.07, 0.14, 0.145, 0.145, 0.165, 0.185, 0.18, 0.145, 0.07])  # times the pup's length
MOTHER_RADII = np.array([4.0, 9.0, 13.0, 15.0, 18.0, 22.0, 25.5, 27.5, 28.0, 26.0, 20.0, 11.0])  # times scale
Window = tuple[slice, slice]


class Canvas:
    """The surface of one frame. ``height`` (H, W) pixels, ``albedo`` (H, W, 3) in 0..1, ``owner`` (H, W): 0 bedding, else 1 + animal."""

    def __init__(self, height: np.ndarray, albedo: np.ndarray) -> None:
        """Start from the bedding, which is copied."""
        self.height, self.albedo = height.copy(), albedo.copy()
        self.owner = np.zeros(height.shape, np.uint8)

    def window(self, low: np.ndarray, high: np.ndarray) -> tuple[Window, np.ndarray, np.ndarray] | None:
        """Pixels between two (x, y) corners as slices with their x (w,) and y (h, 1); None where that lies outside the frame."""
        rows, columns = self.height.shape
        x0, y0 = np.maximum(np.floor(low), 0).astype(int)
        x1, y1 = np.minimum(np.ceil(high) + 1, (columns, rows)).astype(int)
        if x0 >= x1 or y0 >= y1:
            return None
        return (slice(y0, y1), slice(x0, x1)), np.arange(x0, x1, dtype=np.float32), np.arange(y0, y1, dtype=np.float32)[:, None]

    def stamp(self, owner: int, points: np.ndarray, radii: np.ndarray, base: float, colour: Callable, flat: float = 0.8) -> None:
        """Add a chain of tapered capsules wherever it is higher than what is there.

        Args:
            owner: what to write into the owner map.
            points: (M, 2) frame pixels.
            radii: (M,) pixels.
            base: height of the chain's axis, pixels.
            colour: along (n,) in 0..1 and across (n,) in -1..1 to colours (n, 3) or (3,).
            flat: height over radius.
        """
        found = self.window((points - radii[:, None]).min(0), (points + radii[:, None]).max(0))
        if found is None:
            return
        window, xs, ys = found
        a, d = points[:-1].astype(np.float32), np.diff(points, axis=0).astype(np.float32)
        r0, dr = radii[:-1].astype(np.float32), np.diff(radii).astype(np.float32)
        ax, ay, dx, dy, r0, dr = (v[:, None, None] for v in (*a.T, *d.T, r0, dr))
        px, py = xs - ax, ys - ay  # M-1, h or 1, w or 1
        t = np.clip((px * dx + py * dy) / np.maximum(dx * dx + dy * dy, 1e-6), 0, 1)
        gap2 = (px - t * dx) ** 2 + (py - t * dy) ** 2
        radius = r0 + t * dr
        rise = (radius * radius - gap2).max(0)  # of the highest link: heights join without a step where the chain bends
        z = base + flat * np.sqrt(np.maximum(rise, 0))
        shown = (rise > 0) & (z > self.height[window])
        if not shown.any():
            return
        near = gap2.argmin(0)[None]  # skin and fur run along the nearest link: texture that followed the highest one would show rings
        t, gap2, radius, side = (np.take_along_axis(v, near, 0)[0][shown] for v in (t, gap2, radius, px * dy - py * dx))
        across = np.sign(side) * np.minimum(np.sqrt(gap2) / radius, 1)
        along = (near[0][shown] + t) / len(a)
        self.height[window][shown] = z[shown]
        self.albedo[window][shown] = colour(along, across)
        self.owner[window][shown] = owner

    def spot(self, owner: int, centre: np.ndarray, radius: float, colour: tuple[float, float, float], strength: float) -> None:
        """Tint the pixels of one animal around ``centre`` (x, y); what lies over the animal stays as it is."""
        found = self.window(centre - 2.5 * radius, centre + 2.5 * radius)
        if found is None:
            return
        window, xs, ys = found
        weight = strength * np.exp(-0.5 * ((xs - centre[0]) ** 2 + (ys - centre[1]) ** 2) / radius**2)
        weight = (weight * (self.owner[window] == owner))[..., None]
        self.albedo[window] += weight * (np.array(colour, np.float32) - self.albedo[window])


def soft_noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> np.ndarray:
    """(H, W) float32 smooth noise of about unit variance with features of ``cell`` pixels."""
    rows, columns = (max(2, int(n / cell) + 2) for n in shape)
    coarse = Image.fromarray(rng.standard_normal((rows, columns)).astype(np.float32))
    return np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC), np.float32)


def draw_litter(rng: np.random.Generator, size: tuple[int, int], nest: np.ndarray, scale: float) -> tuple[Image.Image, Image.Image]:
    """Wood chips and fibres as colour and height pictures (height 10 grey levels a pixel), at twice the frame's size."""
    width, height = size
    colour, relief = Image.new("RGB", (2 * width, 2 * height)), Image.new("L", (2 * width, 2 * height))
    tone = (np.stack([soft_noise(rng, (2 * height, 2 * width), 60 * scale)] * 3, -1) * 0.05 + (0.42, 0.34, 0.25)).clip(0, 1)
    colour.paste(Image.fromarray((tone * 255).astype(np.uint8)))
    pen, level = ImageDraw.Draw(colour), ImageDraw.Draw(relief)
    palette = np.array([[146, 122, 84], [128, 102, 68], [140, 120, 92], [112, 86, 60], [154, 138, 108], [132, 110, 84], [96, 76, 55]])
    hay = np.array([[164, 150, 122], [148, 124, 84], [160, 146, 122], [120, 98, 66]])
    warmth = rng.uniform(0.93, 1.05, 3)
    bare = rng.choice([0.35, 0.6])  # share of chips that the mother has cleared out of the nest

    def inside(point: np.ndarray) -> float:
        return float(np.hypot(*((point / 2 - nest[:2]) / nest[2:])))

    for _ in range(int(600 * width * height / (384 * 288) / scale**2)):  # chips
        point = rng.uniform(0, 2, 2) * size
        if inside(point) < 0.9 and rng.random() < bare:
            continue
        long, wide, angle = rng.uniform(8, 26) * scale, rng.uniform(3, 10) * scale, rng.uniform(0, np.pi)
        axis = np.array([np.cos(angle), np.sin(angle)])
        normal = axis[::-1] * (-1, 1)
        corners = np.array([[1, 1], [0.9, -1], [-1, -0.8], [-1, 1]]) * (long, wide) * rng.uniform(0.75, 1.1, (4, 1))
        polygon = [tuple(p) for p in point + corners[:, :1] * axis + corners[:, 1:] * normal]
        ink = np.clip(palette[rng.integers(len(palette))] * warmth * rng.uniform(0.78, 1.02), 0, 255).astype(int)
        pen.polygon(polygon, fill=tuple(ink))
        level.polygon(polygon, fill=int(rng.uniform(8, 55) * scale * (0.35 if inside(point) < 0.9 else 1.0)))
    for _ in range(int(600 * width * height / (384 * 288) / scale**2)):  # fibres: hay and shreds of paper, thickest around the nest
        point = rng.uniform(0, 2, 2) * size
        if abs(inside(point) - 1.15) > 0.35 and rng.random() < 0.55:
            continue
        angle, curl, step = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.22), rng.uniform(4, 12) * scale
        angles = angle + curl * np.arange(9)
        strand = point + np.cumsum(np.stack([np.cos(angles), np.sin(angles)], -1) * step, axis=0)
        ink = np.clip(hay[rng.integers(len(hay))] * warmth * rng.uniform(0.75, 1.08), 0, 255)
        thick = int(max(1, round(rng.uniform(1, 3.4) * scale)))
        line = [tuple(p) for p in strand]
        pen.line(line, fill=tuple(ink.astype(int)), width=thick)
        level.line(line, fill=int(rng.uniform(15, 90) * scale), width=thick)
    return colour, relief


def paint_bedding(rng: np.random.Generator, size: tuple[int, int], nest: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The nest without animals: height (H, W) pixels and albedo (H, W, 3) in 0..1, float32. The nest itself is a shallow bowl."""
    width, height = size
    colour, relief = (picture.resize(size, Image.Resampling.BOX) for picture in draw_litter(rng, size, nest, scale))
    albedo = np.asarray(colour, np.float32) / 255
    albedo = albedo * (1 + 0.06 * soft_noise(rng, (height, width), 1.6) + 0.07 * soft_noise(rng, (height, width), 22 * scale))[..., None]
    ys, xs = np.mgrid[:height, :width].astype(np.float32)
    rim = np.hypot((xs - nest[0]) / nest[2], (ys - nest[1]) / nest[3])
    bowl = 5.0 * scale * np.clip(rim - 0.7, 0, 1)
    surface = np.asarray(relief, np.float32) / 10 + bowl + 0.5 * scale * soft_noise(rng, (height, width), 5 * scale)
    return surface.astype(np.float32), albedo.clip(0, 1).astype(np.float32)


def box_blur(values: np.ndarray, reach: int) -> np.ndarray:
    """(H, W) mean over a square of 2 * reach + 1 pixels, edges repeated."""
    for axis in (0, 1):
        pad = [(reach + 1, reach) if a == axis else (0, 0) for a in (0, 1)]
        sums = np.cumsum(np.pad(values, pad, mode="edge"), axis=axis, dtype=np.float64)
        window = 2 * reach + 1
        sums = sums[window:] - sums[:-window] if axis == 0 else sums[:, window:] - sums[:, :-window]
        values = (sums / window).astype(np.float32)
    return values


def smooth3(values: np.ndarray, weight: float) -> np.ndarray:
    """Three-tap blur along rows and columns of (H, W, ...); ``weight`` goes to each neighbour. Borders are left alone."""
    values[1:-1] = (1 - 2 * weight) * values[1:-1] + weight * (values[:-2] + values[2:])
    values[:, 1:-1] = (1 - 2 * weight) * values[:, 1:-1] + weight * (values[:, :-2] + values[:, 2:])
    return values


class Clip:
    """One nest video: ``render(t)`` draws frame t, in any order and always the same.

    Attributes:
        frames, size, pups: number of frames, (width, height) in pixels, number of pups.
        keypoints: (T, N, 3, 2) true positions in frame pixels, order of ``KEYPOINTS``, whether visible or not.
    """

    def __init__(self, seed: tuple[int, ...], frames: int, size: tuple[int, int], pups: int) -> None:
        """Plan all movement and paint the bedding; ``size`` is (width, height) pixels. Animals are as large as fits 384x288, scaled."""
        rng = np.random.default_rng(seed)
        self.seed, self.frames, self.size, self.pups = seed, frames, size, pups
        self.scale = min(size[0] / 384, size[1] / 288)
        self.motion: Motion = simulate(rng, frames, size, pups, self.scale)
        self.bedding = paint_bedding(rng, size, self.motion.nest, self.scale)
        self.skin = 1 + 0.04 * np.stack([soft_noise(rng, (96, 48), 6) + soft_noise(rng, (96, 48), 16) for _ in range(pups)])
        self.tint = np.array([0.80, 0.585, 0.54]) * rng.uniform(0.9, 1.04, (pups, 1)) + rng.normal(0, 0.012, (pups, 3))
        self.fur = 1 + 0.2 * np.repeat(soft_noise(rng, (96, 192), 1.0), 4, axis=0) + 0.16 * soft_noise(rng, (384, 192), 20)
        self.coat = np.array([0.33, 0.255, 0.185]) * rng.uniform(0.75, 1.1)
        self.grain = rng.standard_normal((4, size[1], size[0], 3)).astype(np.float32)
        self.light = self._lighting(rng)
        low = np.minimum(STATIONS.astype(int), SPINE - 2)
        part = (STATIONS - low)[:, None]
        self.keypoints = self.motion.spines[:, :, low] * (1 - part) + self.motion.spines[:, :, low + 1] * part

    def _lighting(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The lamp's direction, its slow changes, the path of a soft shadow, and the lens's fall-off, all fixed for the clip."""
        t = np.arange(self.frames)[:, None]
        angle, period, phase = rng.uniform(0, 2 * np.pi), rng.uniform(180, 420, 4), rng.uniform(0, 2 * np.pi, 4)
        waves = np.sin(2 * np.pi * t / period + phase)
        width, height = self.size
        ys, xs = np.mgrid[:height, :width].astype(np.float32)
        corner = np.hypot((xs / width - 0.5), (ys / height - 0.5)) / 0.707
        slope = rng.normal(0, 0.12, 2)
        falloff = (1 - rng.uniform(0.25, 0.42) * corner**2.2) * (1 + slope[0] * (xs / width - 0.5) + slope[1] * (ys / height - 0.5))
        return {
            "lamp": np.array([np.cos(angle), np.sin(angle)]),
            "gain": rng.uniform(0.9, 1.06) * (1 + 0.09 * waves[:, 0] + 0.03 * np.sin(t[:, 0] / 11.0)),
            "colour": rng.uniform(0.97, 1.03, 3) * (1 + 0.025 * waves[:, 1:2] * np.array([1.0, 0.2, -1.0])),
            "shadow": np.stack([0.5 + 0.75 * waves[:, 2], 0.5 + 0.6 * waves[:, 3]], -1) * self.size,  # centre, frame pixels
            "depth": np.array(rng.uniform(0.22, 0.38)),
            "falloff": falloff.astype(np.float32),
        }

    def _draw_pup(self, canvas: Canvas, t: int, pup: int) -> None:
        motion, owner = self.motion, pup + 1
        spine, length, lift = motion.spines[t, pup], float(motion.lengths[pup]), float(motion.lifts[t, pup])
        radii = PUP_RADII * length
        radii[3:7] *= 1 + 0.025 * np.sin(t / 2.3 + 1.7 * pup)  # breathing
        forward = np.gradient(spine, axis=0)
        forward /= -np.linalg.norm(forward, axis=1, keepdims=True)  # M, 2, towards the snout
        left = forward[:, ::-1] * (1, -1)
        tint, skin = self.tint[pup], self.skin[pup]
        pale = tint * 1.04 + (0.03, -0.01, 0.0)

        def body(along: np.ndarray, across: np.ndarray) -> np.ndarray:
            texture = skin[(along * 95).astype(int), ((across + 1) * 23.5).astype(int)]
            folds = 1 + 0.03 * np.sin(70 * along + 9 * across * across)
            hood = np.clip(1.8 - 5 * along, 0, 1)  # at this age pigment has come to the head, and begins along the back
            back = 0.13 * (1 - across * across) * np.clip(6 * (along - 0.06), 0, 1) + 0.3 * hood
            return (texture * folds)[:, None] * (tint - back[:, None] * (1.0, 0.7, 0.55))

        canvas.stamp(owner, motion.tails[t, pup], np.linspace(0.036, 0.016, motion.tails.shape[2]) * length, lift + 1.0, lambda u, v: pale)
        for limb, (station, side) in enumerate(((3, 1), (3, -1), (6, 1), (6, -1))):
            swing = motion.limbs[t, pup, limb] + (0.45 if station == 3 else -0.45)
            reach = side * np.cos(swing) * left[station] + np.sin(swing) * forward[station]
            root = spine[station] + side * left[station] * 0.7 * radii[station]
            paw = spine[station] + side * left[station] * 0.8 * radii[station] + reach * 0.115 * length
            canvas.stamp(owner, np.stack([root, paw]), np.array([0.05, 0.036]) * length, lift + 0.5, lambda u, v: pale)
        canvas.stamp(owner, spine, radii, lift, body)
        for side in (1, -1):
            ear = spine[2] + side * left[2] * 0.84 * radii[2] + forward[2] * 0.02 * length
            lobe = np.stack([ear, ear - forward[2] * 0.05 * length])
            canvas.stamp(owner, lobe, np.array([0.036, 0.026]) * length, lift + 0.09 * length, lambda u, v: pale * 0.9)
            eye = spine[1] + side * left[1] * 0.62 * radii[1] + forward[1] * 0.035 * length
            canvas.spot(owner, eye, 0.034 * length, (0.13, 0.10, 0.14), 0.95)  # dark under closed lids
        canvas.spot(owner, spine[0] + forward[0] * 0.03 * length, 0.032 * length, (0.88, 0.5, 0.47), 0.6)

    def _draw_mother(self, canvas: Canvas, t: int) -> None:
        owner, scale = self.pups + 1, self.scale
        path = self.motion.mother[t]
        spine, tail = path[:MOTHER_SPINE], path[MOTHER_SPINE - 1 :]
        radii = MOTHER_RADII * scale
        forward = -np.gradient(spine, axis=0)
        forward /= np.linalg.norm(forward, axis=1, keepdims=True) + 1e-6
        left = forward[:, ::-1] * (1, -1)
        coat, fur = self.coat, self.fur

        def body(along: np.ndarray, across: np.ndarray) -> np.ndarray:
            hair = fur[(along * 383).astype(int), ((across + 1) * 95.5).astype(int)]
            return hair[:, None] * coat * (1 + 0.35 * across**4)[:, None]

        def shell(along: np.ndarray, across: np.ndarray) -> np.ndarray:
            return coat * (1.15 + 0.3 * (1 - np.abs(across)))[:, None] + (0.05, 0.02, 0.02)

        canvas.stamp(owner, tail, np.linspace(3.6, 1.4, len(tail)) * scale, 5.0 * scale, lambda u, v: np.array([0.50, 0.40, 0.36]))
        canvas.stamp(owner, spine, radii, 8.0 * scale, body, flat=0.75)
        for side in (1, -1):
            ear = spine[3] + side * left[3] * 0.8 * radii[3]
            lobe = np.stack([ear, ear - forward[3] * 3 * scale])
            canvas.stamp(owner, lobe, np.array([6.5, 5.5]) * scale, 17.0 * scale, shell, flat=0.4)
            canvas.spot(owner, spine[1] + side * left[1] * 0.72 * radii[1], 2.0 * scale, (0.03, 0.03, 0.03), 0.95)
        canvas.spot(owner, spine[0] + forward[0] * 2 * scale, 2.2 * scale, (0.6, 0.42, 0.4), 0.7)

    def surface(self, t: int) -> Canvas:
        """Everything that is in frame t, unlit."""
        canvas = Canvas(*self.bedding)
        for pup in range(self.pups):
            self._draw_pup(canvas, t, pup)
        self._draw_mother(canvas, t)
        return canvas

    def render(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        """Frame t as RGB (H, W, 3) uint8, and its owner map (H, W) uint8: 0 bedding, 1..N the pups, N + 1 the mother."""
        canvas, light, scale = self.surface(t), self.light, self.scale
        height = canvas.height
        dy, dx = (np.clip(g, -1.6, 1.6) for g in np.gradient(height))
        lamp = light["lamp"]
        facing = (1.1 - lamp[0] * dx - lamp[1] * dy) / np.sqrt(1 + dx * dx + dy * dy) / 1.45
        hollow = np.clip((box_blur(height, round(5 * scale)) - height) / (9 * scale), 0, 1)  # creases and gaps get less light
        shade = 0.45 + 0.6 * np.clip(facing, 0, 1.2) - 0.42 * hollow
        for reach in (3, 6, 10):  # cast shadow: something towards the lamp stands higher than the ray
            shift = np.round(lamp * reach * scale).astype(int)
            over = np.roll(height, (-shift[1], -shift[0]), (0, 1)) - height - 0.75 * reach * scale
            shade *= 1 - 0.22 * np.clip(over / (3 * scale), 0, 1)
        centre = light["shadow"][t]
        width, rows = self.size
        xs, ys = np.arange(width, dtype=np.float32), np.arange(rows, dtype=np.float32)[:, None]
        cloud = np.exp(-(((xs - centre[0]) / (85 * scale)) ** 2)) * np.exp(-(((ys - centre[1]) / (75 * scale)) ** 2))
        shade *= light["falloff"] * (1 - light["depth"] * cloud) * light["gain"][t]
        gloss = 0.16 * np.clip(facing - 0.72, 0, 1) * ((canvas.owner > 0) & (canvas.owner <= self.pups))
        image = canvas.albedo * shade[..., None] + (gloss * shade)[..., None]
        image = smooth3(image * light["colour"][t].astype(np.float32), 0.22)
        rng = np.random.default_rng((*self.seed, t))
        grain = np.roll(self.grain[rng.integers(len(self.grain))], tuple(rng.integers(0, (rows, width))), (0, 1))
        image += (0.012 + 0.014 * np.sqrt(np.clip(image, 0, 1))) * grain
        return (np.clip(image * 1.3, 0, 1) * 255 + 0.5).astype(np.uint8), canvas.owner

    def visible(self, t: int, owner: np.ndarray, tolerance: float = 1.5) -> np.ndarray:
        """(N, 3) bool: which keypoints a person could place: within ``tolerance`` pixels the own pup covers as much as all other animals.

        ``owner`` is frame t's map from ``render``. A strand of bedding over a keypoint does not hide it; another animal does.
        """
        width, rows = self.size
        seen = np.zeros((self.pups, len(KEYPOINTS)), bool)
        reach = np.arange(-2, 3)
        for pup, k in np.ndindex(seen.shape):
            x, y = self.keypoints[t, pup, k]
            if not (0 <= x <= width - 1 and 0 <= y <= rows - 1):
                continue
            xs, ys = (np.round(x) + reach).astype(int), (np.round(y) + reach).astype(int)[:, None]
            near = (np.hypot(xs - x, ys - y) <= tolerance) & (xs >= 0) & (xs < width) & (ys >= 0) & (ys < rows)
            owners = owner[np.clip(ys, 0, rows - 1), np.clip(xs, 0, width - 1)][near]
            own = int((owners == pup + 1).sum())
            seen[pup, k] = own > 0 and 2 * own >= int((owners > 0).sum())
        return seen
