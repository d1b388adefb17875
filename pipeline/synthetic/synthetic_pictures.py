"""Synthetic pictures: 1,144 classes that differ in shape, texture and arrangement, never in colour.

Class k shows one of 13 shapes in one of 8 textures in one of 11 arrangements, chosen by k modulo 13, 8 and 11. The
three numbers share no factor, so no two classes agree in all three (the Chinese remainder theorem), and neighbouring
classes differ in each. Colours, background, clutter, grain, position, scale and tilt are drawn from the same
distributions for all classes.

A shape is the set of points where a function is negative (roughly a distance). A texture is the share of the first of
two colours. Both are functions of an object's own coordinates u (right) and v (down), in units of its radius.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

Field = np.ndarray  # float32, one number per pixel of a patch

_CANVAS_SIDE = 250  # pixels; larger pictures are drawn at this longer side and enlarged
_GRAIN = 16.0  # grey levels, half the width of the uniform noise
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
_LUMINANCE_BANDS = ((45, 88), (110, 146), (168, 211))  # one for each of the background and an object's two colours
_SIZES = (  # width, height; repeated roughly in proportion to their frequency in ILSVRC-2012
    *[(500, 375)] * 8,
    *[(375, 500)] * 3,
    *[(500, 333)] * 3,
    *[(333, 500)] * 2,
    (500, 500),
    (500, 400),
    (400, 300),
    (300, 225),
)


def _polygon(u: Field, v: Field, sides: int) -> Field:
    """Return the distance to a regular polygon with a corner at the top."""
    step = 2 * math.pi / sides
    angle = np.arctan2(u, -v) % step - step / 2
    return np.hypot(u, v) * np.cos(angle) - 0.92 * math.cos(step / 2)


def _polar(u: Field, v: Field, corners: int, depth: float) -> Field:
    """Return the distance to a circle whose radius oscillates `corners` times per turn."""
    return np.hypot(u, v) - 0.9 + depth * (0.5 - 0.5 * np.cos(corners * np.arctan2(u, -v)))


SHAPES: dict[tuple[str, str], Callable[[Field, Field], Field]] = {
    ("disc", "discs"): lambda u, v: np.hypot(u, v) - 0.88,
    ("triangle", "triangles"): lambda u, v: _polygon(u, v, 3),
    ("ring", "rings"): lambda u, v: np.abs(np.hypot(u, v) - 0.64) - 0.25,
    ("cross", "crosses"): lambda u, v: np.maximum(
        np.minimum(np.abs(u), np.abs(v)) - 0.3, np.maximum(np.abs(u), np.abs(v)) - 0.9
    ),
    ("square", "squares"): lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.74,
    ("star", "stars"): lambda u, v: _polar(u, v, 5, 0.5),
    ("crescent", "crescents"): lambda u, v: np.maximum(np.hypot(u, v) - 0.88, 0.72 - np.hypot(u - 0.42, v)),
    ("bar", "bars"): lambda u, v: np.maximum(np.abs(u) - 0.95, np.abs(v) - 0.34),
    ("heart", "hearts"): lambda u, v: np.minimum(  # a square on its tip, a disc on each of its upper sides
        (np.abs(u) + np.abs(v - 0.1)) / math.sqrt(2) - 0.54, np.hypot(np.abs(u) - 0.38, v + 0.28) - 0.54
    ),
    ("hexagon", "hexagons"): lambda u, v: _polygon(u, v, 6),
    ("hourglass", "hourglasses"): lambda u, v: np.maximum(np.abs(v) - 0.85, np.abs(u) - 0.9 * np.abs(v) - 0.08),
    ("flower", "flowers"): lambda u, v: _polar(u, v, 8, 0.3),
    ("leaf", "leaves"): lambda u, v: np.hypot(np.abs(u) + 0.55, v) - 1.05,
}


def _share(wave: Field) -> Field:
    """Convert a wave between -1 and 1 to a share with soft edges."""
    return np.clip(0.5 + 2.5 * wave, 0.0, 1.0)


TEXTURES: dict[str, Callable[[Field, Field, Field], Field]] = {  # functions of u, v and the shape's distance
    "plain": lambda u, v, d: np.ones_like(d),
    "striped": lambda u, v, d: _share(np.sin(10.0 * v)),
    "checked": lambda u, v, d: _share(np.sin(7.5 * u) * np.sin(7.5 * v)),
    "outlined": lambda u, v, d: _share(4.0 * (d + 0.17)),
    "dotted": lambda u, v, d: _share(np.cos(10.0 * u) + np.cos(10.0 * v) - 0.7),
    "wavy": lambda u, v, d: _share(np.sin(9.0 * u + 2.2 * np.sin(7.0 * v))),
    "latticed": lambda u, v, d: _share(np.maximum(np.cos(8.5 * (u + v)), np.cos(8.5 * (u - v))) - 0.75),
    "concentric": lambda u, v, d: _share(np.sin(11.0 * np.hypot(u, v) + 0.8)),
}


def _row(count: int) -> list[tuple[float, float]]:
    return [(2 * i / (count - 1) - 1, 0.0) for i in range(count)]


def _circle(count: int) -> list[tuple[float, float]]:
    return [(math.sin(2 * math.pi * i / count), -math.cos(2 * math.pi * i / count)) for i in range(count)]


ARRANGEMENTS: dict[str, list[tuple[float, float]]] = {  # centres of the objects in a square from -1 to 1
    "one {}": [(0.0, 0.0)],
    "three {} in a triangle": _circle(3),
    "two {} side by side": _row(2),
    "six {} in a circle": _circle(6),
    "three {} in a column": [(y, x) for x, y in _row(3)],
    "four {} in a square": [(-0.9, -0.9), (0.9, -0.9), (-0.9, 0.9), (0.9, 0.9)],
    "three {} in a row": _row(3),
    "five {} like on a die": [(-1, -1), (1, -1), (0, 0), (-1, 1), (1, 1)],
    "two {} one above the other": [(y, x) for x, y in _row(2)],
    "four {} in a diamond": _circle(4),
    "four {} in a row": _row(4),
}
NUM_CLASSES = len(SHAPES) * len(TEXTURES) * len(ARRANGEMENTS)


def class_name(class_index: int) -> str:
    """Return the name of a class for people, such as "three striped rings in a row"."""
    (singular, plural), texture, arrangement = _traits(class_index)
    noun = singular if len(ARRANGEMENTS[arrangement]) == 1 else plural
    return arrangement.format(f"{texture} {noun}")


def draw_picture(class_index: int, random: np.random.Generator, max_side: int) -> Image.Image:
    """Draw one picture of a class.

    Args:
        class_index: Class, from 0 to `NUM_CLASSES` - 1.
        random: Generator for everything that differs between two pictures of a class, including the size.
        max_side: Maximum length of a side, in pixels; larger pictures are scaled down in proportion.

    Returns:
        An RGB picture of one of ImageNet's usual sizes.
    """
    shape_name, texture_name, arrangement = _traits(class_index)
    size = _fit(_SIZES[random.integers(len(_SIZES))], max_side)
    canvas_size = _fit(size, _CANVAS_SIDE)
    short_side = min(canvas_size)
    background, first, second = _colors(random)
    ground = _background(background, canvas_size, random)
    planes = np.ascontiguousarray(np.moveaxis(np.asarray(ground), -1, 0), dtype=np.float32)

    centres = np.array(ARRANGEMENTS[arrangement])
    alone = len(centres) == 1
    extent = short_side * random.uniform(0.16, 0.32)  # distance from the group's middle to its outermost centres
    radius = extent * (1.15 if alone else 0.45 * _closest(centres))
    middle = np.array(canvas_size) / 2 + short_side * random.uniform(-0.15, 0.15, 2)
    tilt = random.uniform(-0.3, 0.3)
    turn = np.array([[math.cos(tilt), math.sin(tilt)], [-math.sin(tilt), math.cos(tilt)]])
    places = middle + extent * (centres + random.uniform(-0.06, 0.06, centres.shape)) @ turn
    for x, y in places.tolist():
        _paint(
            planes,
            SHAPES[shape_name],
            TEXTURES[texture_name],
            (x, y),
            radius * random.uniform(0.85, 1.05),
            tilt + random.uniform(-0.3, 0.3),
            (first, second),
        )
    planes += random.uniform(-_GRAIN, _GRAIN, planes.shape[1:]).astype(np.float32)
    picture = Image.fromarray(np.clip(np.moveaxis(planes, 0, -1), 0, 255).astype(np.uint8))
    _scribble(picture, background, int(random.integers(1, 5)), 0.05, random)
    return picture if size == canvas_size else picture.resize(size, Image.Resampling.BILINEAR)


def _traits(class_index: int) -> tuple[tuple[str, str], str, str]:
    """Return a class's shape (singular and plural), texture and arrangement."""
    shapes, textures, arrangements = list(SHAPES), list(TEXTURES), list(ARRANGEMENTS)
    return (
        shapes[class_index % len(shapes)],
        textures[class_index % len(textures)],
        arrangements[class_index % len(arrangements)],
    )


def _fit(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """Return a size scaled down so that no side is longer than `max_side`."""
    scale = min(1.0, max_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _closest(points: np.ndarray) -> float:
    """Return the smallest distance between two of the points, shape (N, 2)."""
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    return float(distances[distances > 0].min())


def _colors(random: np.random.Generator) -> np.ndarray:
    """Return three colours of different luminance, in random order: shape (3, 3), float32, 0 to 255.

    Each colour on its own has the same distribution, so no class has a characteristic colour.
    """
    bands = np.array(_LUMINANCE_BANDS)[random.permutation(3)]
    colors = random.uniform(-90, 90, (3, 3))
    colors += (random.uniform(bands[:, 0], bands[:, 1]) - colors @ _LUMINANCE)[:, None]
    return np.clip(colors, 0, 255).astype(np.float32)


def _background(color: np.ndarray, size: tuple[int, int], random: np.random.Generator) -> Image.Image:
    """Return a smooth, uneven background around a colour, with strokes of clutter on it."""
    patches = np.clip(color + random.uniform(-38, 38, (4, 4, 3)), 0, 255).astype(np.uint8)
    ground = Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC)
    _scribble(ground, color, int(random.integers(4, 10)), 0.08, random)
    return ground


def _scribble(
    picture: Image.Image, color: np.ndarray, num_strokes: int, thickness: float, random: np.random.Generator
) -> None:
    """Draw bent strokes over a picture, in place, in colours near the given one.

    Args:
        picture: RGB picture.
        color: RGB colour, 0 to 255, shape (3,).
        num_strokes: Number of strokes.
        thickness: Maximum width of a stroke, as a fraction of the picture's shorter side.
        random: Generator for all random choices.
    """
    draw = ImageDraw.Draw(picture)
    short_side = min(picture.size)
    for _ in range(num_strokes):
        start = random.uniform(0, 1, 2) * picture.size
        points = start + np.cumsum(random.uniform(-0.3, 0.3, (3, 2)) * short_side, axis=0)
        red, green, blue = np.clip(color + random.uniform(-60, 60, 3), 0, 255).astype(int).tolist()
        width = max(1, round(short_side * random.uniform(0.2, 1.0) * thickness))
        draw.line([(x, y) for x, y in points.tolist()], fill=(red, green, blue), width=width, joint="curve")


def _paint(
    planes: np.ndarray,
    shape: Callable[[Field, Field], Field],
    texture: Callable[[Field, Field, Field], Field],
    centre: tuple[float, float],
    radius: float,
    angle: float,
    colors: tuple[np.ndarray, np.ndarray],
) -> None:
    """Paint one object on the canvas, in place; parts outside the canvas are cut off.

    Args:
        planes: Canvas, float32 (3, height, width).
        shape: Signed distance in radii, negative inside the object.
        texture: Share of the first colour.
        centre: Position of the centre (x, y), in pixels.
        radius: Radius of the object, in pixels.
        angle: Rotation, in radians.
        colors: Two RGB colours.
    """
    _, height, width = planes.shape
    reach = 1.15 * radius
    left, top = (max(0, math.floor(place - reach)) for place in centre)
    right, bottom = (min(end, math.ceil(place + reach)) for place, end in zip(centre, (width, height), strict=True))
    if left >= right or top >= bottom:
        return
    x = (np.arange(left, right, dtype=np.float32) + 0.5 - centre[0])[None, :] / radius
    y = (np.arange(top, bottom, dtype=np.float32) + 0.5 - centre[1])[:, None] / radius
    u = math.cos(angle) * x + math.sin(angle) * y
    v = math.cos(angle) * y - math.sin(angle) * x
    distance = shape(u, v)
    cover = np.clip(0.5 - distance * radius, 0.0, 1.0)
    share = texture(u, v, distance)
    for plane, first, second in zip(planes, *colors, strict=True):
        patch = plane[top:bottom, left:right]
        patch += cover * (second + (first - second) * share - patch)
