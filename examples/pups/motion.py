"""How the animals of the procedural nest move: spines over time, before anything is drawn.

Every pup has its own clock, which runs slowly at rest and fast in a burst; posture is smooth noise read at that clock, so a burst is a
quick squirm and not another kind of movement. Lengths are in pixels of a 384x288 frame times ``scale``; (x, y), x to the right, y down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SPINE = 9  # points along a pup, snout to tail base
MOTHER_SPINE = 12
TAIL = 6


@dataclass(frozen=True)
class Motion:
    """Where every animal is in every frame; T frames, N pups.

    Attributes:
        spines: (T, N, SPINE, 2) frame pixels, snout to tail base.
        tails: (T, N, TAIL, 2) frame pixels, tail base to tip.
        limbs: (T, N, 4) swing of fore left, fore right, hind left, hind right limb, radians about straight sideways.
        lifts: (T, N) height of a pup's belly above the nest floor, pixels; who lies on whom.
        lengths: (N,) snout to tail base, pixels.
        mother: (T, MOTHER_SPINE + TAIL, 2) frame pixels, nose to tail base, then the tail.
        nest: centre x, centre y, radius x, radius y of the nest, frame pixels.
    """

    spines: np.ndarray
    tails: np.ndarray
    limbs: np.ndarray
    lifts: np.ndarray
    lengths: np.ndarray
    mother: np.ndarray
    nest: np.ndarray


def wander(rng: np.random.Generator, clocks: np.ndarray, slowness: float) -> np.ndarray:
    """Smooth noise of unit variance, one curve per column, read at ``clocks`` (T, N); ``slowness`` is its correlation time."""
    half = int(3 * slowness) + 1
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) / slowness) ** 2)
    kernel /= np.sqrt((kernel**2).sum())
    grid = np.arange(int(clocks.max()) + 3)
    curves = [np.convolve(rng.standard_normal(len(grid) + 2 * half), kernel, "valid") for _ in range(clocks.shape[1])]
    return np.stack([np.interp(clock, grid, curve) for clock, curve in zip(clocks.T, curves, strict=True)], axis=1)


def activity(rng: np.random.Generator, frames: int, pups: int) -> np.ndarray:
    """(T, N) speed of each pup's clock: slow breathing-like drift with a burst every few seconds."""
    t = np.arange(frames, dtype=np.float64)
    speed = 0.4 * np.exp(0.5 * wander(rng, np.repeat(t[:, None], pups, 1), 40.0))
    for pup in range(pups):
        start = rng.uniform(-60, 100)
        while start < frames:
            duration, strength = rng.uniform(15, 45), rng.uniform(1.2, 3.0)
            phase = np.clip((t - start) / duration, 0, 1)
            speed[:, pup] += strength * np.sin(np.pi * phase) ** 2
            start += duration + rng.exponential(110)
    return speed


def drift(
    rng: np.random.Generator, speed: np.ndarray, turning: np.ndarray, pushing: np.ndarray, lengths: np.ndarray, nest: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Centres (T, N, 2) and headings (T, N): pups crawl, turn back at the nest's rim and push one another apart a little.

    The push is weak on purpose: pups huddle, so their bodies overlap.
    """
    frames, pups = speed.shape
    centre, radius = nest[:2], nest[2:]
    scale = lengths.mean() / 50.0
    angle = rng.uniform(0, 2 * np.pi, pups)
    spread = np.sqrt(rng.uniform(0.05, 1.0, (pups, 1)))
    place = centre + 0.9 * spread * radius * np.stack([np.cos(angle), np.sin(angle)], -1)
    heading = rng.uniform(0, 2 * np.pi, pups)
    centres, headings = np.empty((frames, pups, 2)), np.empty((frames, pups))
    for t in range(-60, frames):  # the first 60 steps untangle the random start and are not kept
        now = max(t, 0)
        inward = centre - place
        outside = np.clip(np.hypot(*(inward / radius).T) - 0.75, 0, 1)
        home = np.arctan2(inward[:, 1], inward[:, 0])
        heading = heading + speed[now] * (0.035 * turning[now] + 0.12 * outside * np.sin(home - heading))
        apart = place[:, None] - place[None]  # N, N, 2
        distance = np.hypot(apart[..., 0], apart[..., 1]) + np.eye(pups) * 1e6 + 1e-6
        push = np.clip(1 - distance / (0.52 * lengths.mean()), 0, 1)[..., None] * apart / distance[..., None]
        forward = np.stack([np.cos(heading), np.sin(heading)], -1)
        crawl = (0.55 * scale * speed[now] * np.clip(0.4 + pushing[now], -0.4, 1.6))[:, None] * forward
        place = place + crawl + scale * (0.9 * push.sum(1) + 0.02 * outside[:, None] * inward / scale)
        if t >= 0:
            centres[t], headings[t] = place, heading
    return centres, headings


def bend(centres: np.ndarray, headings: np.ndarray, curl: np.ndarray, wave: np.ndarray, nod: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Spines (T, N, SPINE, 2) from a C-shaped curl, an S-shaped wave and a turned head; the tangent angle is integrated along the body."""
    middle = (np.arange(SPINE - 1) + 0.5) / (SPINE - 1) - 0.5  # of each segment: -0.5 snout ... 0.5 tail base
    angle = headings[..., None] + curl[..., None] * middle + wave[..., None] * np.sin(2 * np.pi * middle)
    angle = angle + nod[..., None] * np.clip(-0.1 - middle, 0, None) * 2.5
    step = -np.stack([np.cos(angle), np.sin(angle)], -1) * (lengths / (SPINE - 1))[..., None, None]
    points = np.concatenate([np.zeros((*step.shape[:2], 1, 2)), np.cumsum(step, axis=2)], axis=2)
    return points - points.mean(axis=2, keepdims=True) + centres[:, :, None]


def trail(start: np.ndarray, direction: np.ndarray, curl: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Tails (..., TAIL, 2) that leave ``start`` (..., 2) along ``direction`` (...) radians and curl by ``curl`` radians."""
    along = (np.arange(TAIL - 1) + 0.5) / (TAIL - 1)
    angle = direction[..., None] + curl[..., None] * along**1.5
    step = np.stack([np.cos(angle), np.sin(angle)], -1) * (length / (TAIL - 1))[..., None, None]
    return start[..., None, :] + np.concatenate([np.zeros((*step.shape[:-2], 1, 2)), np.cumsum(step, axis=-2)], axis=-2)


def mother_path(rng: np.random.Generator, frames: int, size: tuple[int, int], nest: np.ndarray, scale: float) -> np.ndarray:
    """(T, MOTHER_SPINE + TAIL, 2): she walks from place to place and rests there; the body follows the nose like beads on a string."""
    width, height = size
    links = np.r_[np.full(MOTHER_SPINE - 1, 11.5), np.full(TAIL, 17.0)] * scale  # pixels between neighbours
    nose, heading, pace = rng.uniform((0.0, 0.0), (0.3 * width, 0.3 * height)), rng.uniform(0, 2 * np.pi), 0.0
    beads = nose - np.r_[0, np.cumsum(links)][:, None] * np.array([np.cos(heading), np.sin(heading)])
    target, rest, visits = nest[:2] + nest[2:] * (0.9, 0.9), 0, 0
    path = np.empty((frames, len(links) + 1, 2))
    for t in range(-40, frames):
        gap = target - beads[0]
        if rest == 0 and np.hypot(*gap) < 14 * scale:
            rest = int(rng.uniform(40, 110))
        if rest:
            rest -= 1
            pace *= 0.9
            if rest == 0:
                visits += 1
                angle = rng.uniform(0, 2 * np.pi)
                ring = rng.uniform(0.75, 1.15) if visits % 3 == 0 else rng.uniform(1.5, 2.1)  # every third stop is in the nest
                target = nest[:2] + nest[2:] * ring * (np.cos(angle), np.sin(angle))
                target = np.clip(target, 18 * scale, np.array(size) - 18 * scale)
        else:
            turn = (np.arctan2(gap[1], gap[0]) - heading + np.pi) % (2 * np.pi) - np.pi
            heading += np.clip(turn, -1, 1) * 0.075 + 0.02 * np.sin(t / 9.0)
            pace += 0.06 * (rng.uniform(1.6, 2.8) * scale - pace)
        beads = beads.copy()
        beads[0] += pace * np.array([np.cos(heading), np.sin(heading)]) + 0.12 * scale * np.array([np.sin(t / 5.0), np.cos(t / 7.0)])
        for k, link in enumerate(links):
            away = beads[k + 1] - beads[k]
            beads[k + 1] = beads[k] + away * (link / max(np.hypot(*away), 1e-6))
        if t >= 0:
            path[t] = beads
    return path


def simulate(rng: np.random.Generator, frames: int, size: tuple[int, int], pups: int, scale: float) -> Motion:
    """The whole clip's movement; ``size`` is (width, height) in pixels."""
    width, height = size
    nest = np.array([rng.uniform(0.42, 0.58) * width, rng.uniform(0.45, 0.56) * height, 86 * scale, 66 * scale])
    nest[2:] *= max(1.0, pups / 8) ** 0.5
    nest[2:] = np.minimum(nest[2:], (0.38 * width, 0.36 * height))
    lengths = rng.uniform(44, 56, pups) * scale
    speed = activity(rng, frames, pups)
    clocks = np.cumsum(speed, axis=0)

    def noise(slowness: float) -> np.ndarray:
        return wander(rng, clocks, slowness)

    centres, headings = drift(rng, speed, noise(14.0), 0.8 * noise(20.0), lengths, nest)
    bias = rng.uniform(-0.7, 0.7, pups)  # some lie curled to one side most of the time
    stretch = lengths * (1 + 0.05 * np.tanh(noise(12.0)))
    spines = bend(centres, headings, 1.7 * np.tanh(0.6 * noise(16.0) + bias), 0.28 * noise(8.0), 0.9 * np.tanh(noise(9.0)), stretch)
    leave = spines[:, :, -1] - spines[:, :, -2]
    tails = trail(spines[:, :, -1], np.arctan2(leave[..., 1], leave[..., 0]), 1.1 * noise(9.0), 0.46 * stretch)
    limbs = np.stack([0.6 * np.tanh(noise(4.0)) for _ in range(4)], axis=-1)
    lifts = scale * (4.0 + 3.6 * np.tanh(noise(22.0)))
    return Motion(spines, tails, limbs, lifts, lengths, mother_path(rng, frames, size, nest, scale), nest)
