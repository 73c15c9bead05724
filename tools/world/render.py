"""Draws the pictures of the demo world: flags and coloured shapes.

Every picture comes from a numpy Generator and a Ranges object; beside the
pixels there is a label map that says which object owns each pixel, which is
the truth for masks and for the dense training of the vision tower.
"""
import math

import numpy as np
from PIL import Image, ImageDraw

SIZE = 88
SHAPES = ["circle", "square", "triangle", "star", "diamond", "cross", "ring", "heart"]
COLORS = {"red": (214, 32, 40), "orange": (245, 130, 20), "yellow": (248, 222, 30),
          "green": (30, 150, 60), "blue": (30, 70, 210), "purple": (130, 40, 160),
          "white": (246, 246, 246), "black": (16, 16, 16)}
COLOR_NAMES = list(COLORS)
# Two shapes have one colour in most of training (docs/world.md, "Prior").
PRIOR = {SHAPES.index("heart"): COLOR_NAMES.index("red"),
         SHAPES.index("ring"): COLOR_NAMES.index("blue")}
PRIOR_SHARE = 0.8
KINDS = ["flag", "two_flags", "shapes", "flag_shapes", "blank"]


class Ranges:
    """Renderer ranges; `widen` stretches each about its centre (1 = training)."""
    TABLE = {
        "flag_width": (0.50, 0.86), "pair_width": (0.36, 0.45), "beside_width": (0.46, 0.62),
        "shape_size": (0.25, 0.36), "small_shape": (0.24, 0.32), "row_shape": (0.22, 0.28), "angle": (-8.0, 8.0),
        "jitter": (-0.035, 0.035), "brightness": (0.82, 1.16), "noise": (-4.0, 4.0),
        "gradient": (-24.0, 24.0), "tint": (-12.0, 12.0), "aspect": (0.93, 1.07),
        "background": (76.0, 184.0),
    }

    def __init__(self, widen=1.0):
        self.widen = widen

    def draw(self, rng, name):
        lo, hi = self.TABLE[name]
        mid, half = (lo + hi) / 2, (hi - lo) / 2 * self.widen
        return rng.uniform(mid - half, mid + half)


def outline(shape):
    """Closed polygon of a shape in the unit disc, y downwards."""
    def ngon(n, start, radii=(1.0,)):
        return [(radii[i % len(radii)] * math.cos(start + 2 * math.pi * i / n),
                 radii[i % len(radii)] * math.sin(start + 2 * math.pi * i / n))
                for i in range(n)]
    up = -math.pi / 2
    if shape in ("circle", "ring"):
        return ngon(40, 0)
    if shape == "square":
        return [(-.82, -.82), (.82, -.82), (.82, .82), (-.82, .82)]
    if shape == "triangle":
        return [(x * 1.12, y * 1.12 + .22) for x, y in ngon(3, up)]
    if shape == "star":
        return [(x * 1.1, y * 1.1 + .05) for x, y in ngon(10, up, (1.0, 0.42))]
    if shape == "diamond":
        return [(0, -1.1), (.78, 0), (0, 1.1), (-.78, 0)]
    if shape == "cross":
        a = .34
        return [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a),
                (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]
    turn = [2 * math.pi * i / 40 for i in range(40)]   # heart
    return [(math.sin(t) ** 3 * 1.02,
             -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t)
               - math.cos(4 * t)) / 15.5 - .08) for t in turn]


OUTLINES = {s: outline(s) for s in SHAPES}


def shape_mask(shape, size, angle, canvas, center):
    """Antialiased coverage of one shape as an L picture of the canvas size."""
    over = 4
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    r = size / 2 * over

    def place(points, k=1.0):
        return [(center[0] * over + (x * cos - y * sin) * r * k,
                 center[1] * over + (x * sin + y * cos) * r * k) for x, y in points]
    mask = Image.new("L", (canvas * over, canvas * over))
    pen = ImageDraw.Draw(mask)
    pen.polygon(place(OUTLINES[shape]), fill=255)
    if shape == "ring":
        pen.polygon(place(OUTLINES[shape], 0.52), fill=0)
    return mask.reduce(over)


def flag_layer(flag, width, height, angle):
    """A flag scaled and turned, with its coverage."""
    w, h = max(4, round(width)), max(4, round(height))
    small = flag.resize((w, h), Image.BOX if w < flag.width else Image.BICUBIC)
    small.putalpha(255)
    return small.rotate(angle, Image.BICUBIC, expand=True)


def background(rng, ranges, size):
    base = ranges.draw(rng, "background") + rng.uniform(-22, 22, 3)
    t = rng.uniform(0, 2 * math.pi)
    ramp = np.linspace(-1, 1, size)
    slope = np.cos(t) * ramp[None, :] + np.sin(t) * ramp[:, None]
    if rng.random() < 0.5:
        slope = slope * 0
    return base + slope[..., None] * ranges.draw(rng, "gradient")


def draw_shapes(rng, n, prior):
    """n different shapes with colours, mostly different ones, as (shape, colour).

    Those of PRIOR get their colour with probability `prior` (None: like the rest)."""
    shapes = [int(s) for s in rng.permutation(len(SHAPES))[:n]]
    free = [int(c) for c in rng.permutation(len(COLOR_NAMES))]
    colors = {}
    for s in shapes:
        if prior is not None and s in PRIOR and rng.random() < prior:
            colors[s] = PRIOR[s]
    free = [c for c in free if c not in colors.values()]
    for s in shapes:
        if s not in colors:   # a shape of PRIOR comes here to get another colour
            k = 1 if prior is not None and PRIOR.get(s) == free[0] else 0
            colors[s] = free.pop(k)
    plain = [s for s in shapes if s not in PRIOR]
    if n > 2 and plain and rng.random() < 0.3:   # one colour twice
        s = plain[int(rng.random() * len(plain))]
        colors[s] = colors[next(o for o in shapes if o != s)]
    return [(s, colors[s]) for s in shapes]


def layout(rng, ranges, kind, world, fixed=None, prior=PRIOR_SHARE):
    """Chooses objects and places: a list of dicts in units of the picture.

    `fixed` names the countries to show by index (else they are drawn at random from
    those that training shows); `prior` is for draw_shapes."""
    jitter = lambda: ranges.draw(rng, "jitter")
    objects = []
    if fixed is None and "flag" in kind:
        shown = world.shown
        fixed = [shown.draw(rng).index, shown.draw(rng).index]
        while fixed[1] == fixed[0]:
            fixed[1] = shown.draw(rng).index

    def flag(country, x, y, width, side=None):
        objects.append({"flag": int(country), "x": x, "y": y, "side": side,
                        "size": ranges.draw(rng, width)})

    def shapes(places, size):
        for (x, y), (s, c) in zip(places, draw_shapes(rng, len(places), prior)):
            objects.append({"shape": s, "color": c, "x": x + jitter(),
                            "y": y + jitter(), "size": ranges.draw(rng, size)})

    if kind == "flag":
        size = ranges.draw(rng, "flag_width")
        free = max(0.0, (0.96 - size) / 2)
        flag(fixed[0], 0.5 + rng.uniform(-free, free), 0.5 + rng.uniform(-.14, .14),
             "flag_width")
        objects[0]["size"] = size
    elif kind == "two_flags":
        for side, x, country in zip(("left", "right"), (0.255, 0.745), fixed):
            flag(country, x + jitter() / 3, 0.5 + 4 * jitter(), "pair_width", side)
    elif kind == "flag_shapes":
        up = rng.random() < 0.5
        flag(fixed[0], 0.5 + 2 * jitter(), 0.29 if up else 0.71, "beside_width")
        xs = [(0.5,), (0.27, 0.73)][int(rng.random() < 0.75)]
        shapes([(x, 0.76 if up else 0.24) for x in xs], "small_shape")
    elif kind == "shapes":
        n = int(rng.integers(2, 5))
        wide = rng.random() < 0.45   # three columns, else two
        xs = (0.19, 0.5, 0.81) if wide else (0.26, 0.74)
        cells = [(x, y) for y in (0.26, 0.74) for x in xs]
        shapes([cells[i] for i in rng.permutation(len(cells))[:n]],
               "row_shape" if wide else "shape_size")
    return objects


def paint(rng, ranges, objects, world, size=SIZE):
    """Pixels (size x size x 3 uint8) and owner map (0 = background, i+1 = object i)."""
    canvas = Image.fromarray(np.clip(background(rng, ranges, size), 0, 255).astype(np.uint8))
    owner = np.zeros((size, size), np.uint8)
    for i, o in enumerate(objects):
        angle = ranges.draw(rng, "angle")
        cx, cy, extent = o["x"] * size, o["y"] * size, o["size"] * size
        if "flag" in o:
            height = extent * 0.75 * ranges.draw(rng, "aspect")
            layer = flag_layer(world.flags[o["flag"]], extent, height, angle)
            at = (round(cx - layer.width / 2), round(cy - layer.height / 2))
            mask = Image.new("L", (size, size))
            mask.paste(layer.getchannel("A"), at)
            canvas.paste(layer.convert("RGB"), at, layer.getchannel("A"))
        else:
            mask = shape_mask(SHAPES[o["shape"]], extent, angle, size, (cx, cy))
            tint = [ranges.draw(rng, "tint") for _ in range(3)]
            color = np.clip(np.add(COLORS[COLOR_NAMES[o["color"]]], tint), 0, 255)
            canvas.paste(tuple(int(v) for v in color), (0, 0), mask)
        owner[np.asarray(mask) > 127] = i + 1
    pixels = np.asarray(canvas, np.float32) * ranges.draw(rng, "brightness")
    noise = ranges.draw(rng, "noise")
    if noise > 0:   # half of the pictures stay clean
        # The same grain on all three channels, as from a photographic sensor.
        pixels = pixels + np.round(rng.normal(0, noise, (size, size, 1)))
    return np.clip(pixels, 0, 255).astype(np.uint8), owner


def picture(rng, ranges, kind, world, fixed=None, size=SIZE, prior=PRIOR_SHARE):
    """(pixels, owner map, objects); see layout and paint."""
    objects = layout(rng, ranges, kind, world, fixed, prior)
    pixels, owner = paint(rng, ranges, objects, world, size)
    return pixels, owner, objects
