"""Vector drawings of the kinds, as strokes on a 32x32 grid.

Each drawing paints three inks: BODY takes the thing's colour, DARK and LIGHT are its details; NONE cuts out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw, ImageFilter

GRID = 32
SCALE = 8  # supersampling
BODY, DARK, LIGHT, NONE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)
Ink = tuple[int, int, int]
Points = Sequence[tuple[float, float]]


class Pen:
    """PIL's drawing in grid units."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (GRID * SCALE, GRID * SCALE), NONE)
        self._draw = ImageDraw.Draw(self.image)

    def box(self, x0: float, y0: float, x1: float, y1: float, ink: Ink = BODY, r: float = 0) -> None:
        self._draw.rounded_rectangle([v * SCALE for v in (x0, y0, x1, y1)], r * SCALE, ink)

    def oval(self, x0: float, y0: float, x1: float, y1: float, ink: Ink = BODY) -> None:
        self._draw.ellipse([v * SCALE for v in (x0, y0, x1, y1)], ink)

    def ring(self, x: float, y: float, r: float, width: float, ink: Ink = BODY) -> None:
        box = [v * SCALE for v in (x - r, y - r, x + r, y + r)]
        self._draw.ellipse(box, outline=ink, width=int(width * SCALE))

    def wedge(self, x: float, y: float, r: float, start: float, end: float, ink: Ink = BODY) -> None:
        self._draw.pieslice([v * SCALE for v in (x - r, y - r, x + r, y + r)], start, end, ink)

    def arc(
        self, x: float, y: float, r: float, start: float, end: float, width: float, ink: Ink = BODY
    ) -> None:
        box = [v * SCALE for v in (x - r, y - r, x + r, y + r)]
        self._draw.arc(box, start, end, ink, int(width * SCALE))

    def shape(self, points: Points, ink: Ink = BODY) -> None:
        self._draw.polygon([(x * SCALE, y * SCALE) for x, y in points], ink)

    def line(self, points: Points, width: float, ink: Ink = BODY) -> None:
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self._draw.line(scaled, ink, int(width * SCALE), joint="curve")
        for x, y in points:
            self.oval(x - width / 2, y - width / 2, x + width / 2, y + width / 2, ink)


def cup(p: Pen) -> None:
    p.ring(22, 17, 7, 3)
    p.shape([(4, 8), (22, 8), (20, 29), (6, 29)])
    p.oval(4, 5, 22, 11)
    p.oval(6, 6.5, 20, 10, DARK)


def plate(p: Pen) -> None:
    p.oval(1, 9, 31, 26)
    p.oval(7, 12.5, 25, 21.5, DARK)
    p.oval(8, 13.5, 24, 21.5, LIGHT)


def bottle(p: Pen) -> None:
    p.box(13, 2, 19, 14)
    p.shape([(13, 8), (19, 8), (24, 15), (8, 15)])
    p.box(8, 14, 24, 31, r=2)
    p.box(12.5, 1, 19.5, 5, DARK)
    p.box(8, 18, 24, 25, LIGHT)


def apple(p: Pen) -> None:
    p.oval(3, 9, 19, 30)
    p.oval(13, 9, 29, 30)
    p.line([(16, 11), (17, 4)], 2, DARK)
    p.oval(18, 2, 27, 7.5, DARK)
    p.oval(7, 13, 11, 18, LIGHT)


def banana(p: Pen) -> None:
    p.oval(1, -3, 31, 29)
    p.oval(1, -11, 33, 19, NONE)
    p.box(0, 0, 32, 7, NONE)
    p.line([(3, 7), (3.5, 10)], 3, DARK)
    p.line([(29, 14), (30, 12)], 2.5, DARK)
    p.line([(6, 17), (11, 22), (18, 24.5), (25, 22)], 1, DARK)


def knife(p: Pen) -> None:
    p.shape([(8, 18), (22, 3), (29, 1), (29, 8), (14, 24)])
    p.line([(4, 28), (10, 22)], 5, DARK)


def chair(p: Pen) -> None:
    p.box(6, 1, 10, 31)
    p.box(6, 15, 26, 19.5)
    p.box(22, 17, 26, 31)
    p.box(6, 3, 13, 12)


def clock(p: Pen) -> None:
    p.oval(2, 2, 30, 30)
    p.oval(6.5, 6.5, 25.5, 25.5, LIGHT)
    p.line([(16, 16), (16, 9)], 2, DARK)
    p.line([(16, 16), (21.5, 19)], 2, DARK)


def car(p: Pen) -> None:
    p.shape([(6, 16), (11, 7), (21, 7), (27, 16)])
    p.box(1, 14, 31, 24, r=3)
    p.shape([(9, 14.5), (12, 9), (15.2, 9), (15.2, 14.5)], LIGHT)
    p.shape([(17, 14.5), (17, 9), (20.3, 9), (23.8, 14.5)], LIGHT)
    for x in (9, 23):
        p.oval(x - 4.5, 20, x + 4.5, 29, DARK)
        p.oval(x - 1.5, 23, x + 1.5, 26, LIGHT)


def bus(p: Pen) -> None:
    p.box(1, 3, 31, 26, r=2)
    for x in (3.5, 10.5, 17.5, 24.5):
        p.box(x, 7, x + 5, 14, LIGHT)
    p.box(1, 18, 31, 19.5, DARK)
    for x in (8, 24):
        p.oval(x - 4, 22, x + 4, 30, DARK)


def bicycle(p: Pen) -> None:
    for x in (7.5, 24.5):
        p.ring(x, 21.5, 7, 2)
    p.line([(7.5, 21.5), (13, 12), (22, 12), (16, 21.5), (7.5, 21.5)], 2)
    p.line([(13, 12), (16, 21.5)], 2)
    p.line([(24.5, 21.5), (21, 8), (25, 7)], 2)
    p.line([(10, 10), (15, 10)], 2.2, DARK)


def hydrant(p: Pen) -> None:
    p.wedge(16, 10, 7, 180, 360)
    p.box(14.5, 1, 17.5, 5)
    p.box(9, 9, 23, 28)
    p.box(7, 9, 25, 12)
    p.box(3, 15, 29, 21, r=1)
    p.box(6, 27, 26, 31)
    p.oval(12.5, 14.5, 19.5, 21.5, DARK)


def tree(p: Pen) -> None:
    p.box(13.5, 18, 18.5, 31, DARK)
    p.oval(2, 8, 17, 22)
    p.oval(15, 8, 30, 22)
    p.oval(7, 1, 25, 18)


def bench(p: Pen) -> None:
    p.box(1, 7, 31, 10)
    p.box(1, 12, 31, 15)
    p.box(0, 19, 32, 23)
    for x in (4, 25):
        p.box(x, 7, x + 2.5, 29, DARK)
    p.box(0, 19, 32, 22)


def dog(p: Pen) -> None:
    p.box(5, 14, 24, 22, r=3)
    p.box(5.5, 18, 9, 30)
    p.box(20, 18, 23.5, 30)
    p.box(10.5, 18, 13, 28)
    p.line([(6, 16), (1.5, 9)], 2.5)
    p.oval(18, 5, 28, 16)
    p.box(24, 9.5, 31.5, 15, r=2)
    p.oval(17, 6, 21.5, 16, DARK)
    p.oval(29, 9, 32, 12, DARK)
    p.oval(23.5, 8, 25.3, 10, DARK)


def cat(p: Pen) -> None:
    p.arc(22, 23, 7, 290, 90, 2.6)
    p.oval(7, 15, 23, 33)
    p.oval(5, 4, 25, 19)
    p.shape([(5.5, 11), (5, 0), (13, 5)])
    p.shape([(24.5, 11), (25, 0), (17, 5)])
    for x in (11, 19):
        p.oval(x - 1.6, 9, x + 1.6, 13, LIGHT)
        p.oval(x - 0.7, 9, x + 0.7, 13, DARK)
    p.shape([(13.5, 14), (16.5, 14), (15, 16)], DARK)
    p.line([(15, 23), (15, 31)], 1, DARK)


def umbrella(p: Pen) -> None:
    p.line([(16, 3), (16, 27)], 2, DARK)
    p.arc(12.8, 27, 4.2, 0, 180, 2, DARK)
    p.wedge(16, 17, 15, 180, 360)
    for x in (1, 11, 21):
        p.oval(x, 14, x + 10, 20, NONE)
    p.line([(16, 15), (16, 27)], 2, DARK)
    p.line([(16, 0.5), (16, 3)], 1.5, DARK)


def ball(p: Pen) -> None:
    p.oval(3, 3, 29, 29)
    for start in (20, 140, 260):
        p.wedge(16, 16, 12.5, start, start + 60, LIGHT)
    p.oval(13, 13, 19, 19, DARK)


def kite(p: Pen) -> None:
    p.shape([(18, 0.5), (29, 10), (14, 24), (7, 8)])
    p.line([(18, 1), (14, 23)], 1, DARK)
    p.line([(8, 8.5), (28, 10)], 1, DARK)
    p.line([(14, 24), (10, 27), (6, 26), (3, 30)], 1.2, DARK)
    p.shape([(7, 23), (12, 29), (12, 24), (8, 29)])


def bird(p: Pen) -> None:
    p.shape([(9, 15), (0, 11), (1, 20), (9, 21)])
    p.oval(5, 10, 24, 24)
    p.oval(16, 3, 27, 14)
    p.shape([(25.5, 6), (31.5, 9), (25.5, 11)], DARK)
    p.oval(21.5, 6, 23.8, 8.3, DARK)
    p.shape([(8, 14), (19, 14), (11, 21)], DARK)
    for x in (13, 17):
        p.line([(x, 24), (x, 30)], 1.3, DARK)


def flower(p: Pen) -> None:
    p.line([(16, 15), (16, 31)], 2, DARK)
    p.oval(17, 22, 26, 27, DARK)
    for x, y in ((16, 5), (22, 9.5), (20, 16.5), (12, 16.5), (10, 9.5)):
        p.oval(x - 5, y - 5, x + 5, y + 5)
    p.oval(12, 7.5, 20, 15.5, LIGHT)


def laptop(p: Pen) -> None:
    p.box(5, 3, 27, 20, r=1)
    p.box(7.5, 5.5, 24.5, 17.5, LIGHT)
    p.shape([(5, 20), (27, 20), (32, 28), (0, 28)])
    p.shape([(7.5, 21.5), (24.5, 21.5), (26.5, 25), (5.5, 25)], DARK)


def book(p: Pen) -> None:
    p.box(6, 2, 27, 30, r=1)
    p.box(9, 25.5, 27.2, 29, LIGHT)
    p.box(6, 2, 9.5, 30, DARK)
    p.box(13, 7, 23.5, 13, LIGHT)


def phone(p: Pen) -> None:
    p.box(8, 1, 24, 31, r=3)
    p.box(10.5, 5, 21.5, 25, LIGHT)
    p.oval(14.2, 26.2, 17.8, 29.8, DARK)
    p.box(13.5, 2.5, 18.5, 3.7, DARK)


def lamp(p: Pen) -> None:
    p.box(14.5, 15, 17.5, 28, DARK)
    p.shape([(10, 2), (22, 2), (29, 17), (3, 17)])
    p.oval(8, 26, 24, 31, DARK)


def boat(p: Pen) -> None:
    p.shape([(17.5, 1), (17.5, 19), (30, 19)])
    p.shape([(14, 5), (14, 19), (4, 19)], LIGHT)
    p.line([(16, 1), (16, 23)], 1.6, DARK)
    p.shape([(1, 21.5), (31, 21.5), (25, 30), (7, 30)])


def fish(p: Pen) -> None:
    p.shape([(19, 16), (31, 6), (28, 16), (31, 26)])
    p.shape([(9, 10), (15, 3), (19, 10)])
    p.oval(1, 7, 24, 25)
    p.oval(4.5, 11.5, 9.5, 16.5, LIGHT)
    p.oval(6, 13, 8.5, 15.5, DARK)
    p.arc(6, 16, 7, 310, 50, 1.2, DARK)


def bed(p: Pen) -> None:
    p.box(1, 6, 5, 29, DARK)
    p.box(28, 17, 31, 29, DARK)
    p.box(3, 16, 31, 25, r=1)
    p.box(5, 12, 13, 17, LIGHT, r=2)
    p.shape([(13, 13), (29, 14.5), (30, 18), (13, 18)])


DRAWINGS: dict[str, Callable[[Pen], None]] = {
    drawing.__name__: drawing
    for drawing in (
        cup, plate, bottle, apple, banana, knife, chair, clock, car, bus, bicycle, hydrant, tree, bench,
        dog, cat, umbrella, ball, kite, bird, flower, laptop, book, phone, lamp, boat, fish, bed,
    )
}  # fmt: skip

# The letters of signs, as strokes in a box of width 1 and height 1.
STROKES: dict[str, tuple[Points, ...]] = {
    "E": (((1, 0), (0, 0), (0, 1), (1, 1)), ((0, 0.5), (0.8, 0.5))),
    "H": (((0, 0), (0, 1)), ((1, 0), (1, 1)), ((0, 0.5), (1, 0.5))),
    "K": (((0, 0), (0, 1)), ((1, 0), (0.05, 0.55), (1, 1))),
    "L": (((0, 0), (0, 1), (1, 1)),),
    "O": (((0, 0), (1, 0), (1, 1), (0, 1), (0, 0)),),
    "P": (((0, 1), (0, 0), (1, 0), (1, 0.52), (0, 0.52)),),
    "T": (((0, 0), (1, 0)), ((0.5, 0), (0.5, 1))),
    "X": (((0, 0), (1, 1)), ((1, 0), (0, 1))),
    "Y": (((0, 0), (0.5, 0.5), (1, 0)), ((0.5, 0.5), (0.5, 1))),
    "Z": (((0, 0), (1, 0), (0, 1), (1, 1)),),
}


def draw_kind(kind: str) -> Image.Image:
    """The icon at SCALE times the grid, in inks, with a thin DARK outline."""
    pen = Pen()
    DRAWINGS[kind](pen)
    return outlined(pen.image)


def outlined(image: Image.Image) -> Image.Image:
    filled = image.convert("L").point(lambda v: 255 if v else 0)
    grown = filled.filter(ImageFilter.MaxFilter(SCALE - 1))
    under = Image.new("RGB", image.size, NONE)
    under.paste(DARK, mask=grown)
    under.paste(image, mask=filled)
    return under


def draw_sign(text: str) -> Image.Image:
    """A white board on a post, with two or three letters."""
    pen = Pen()
    pen.box(14.5, 22, 17.5, 31, DARK)
    pen.box(0, 3, 32, 24, DARK, r=1)
    pen.box(1, 4, 31, 23, LIGHT)
    step = 27 / len(text)
    width = min(step - 3.2, 7.5)
    for i, letter in enumerate(text):
        left = 2.5 + step * (i + 0.5) - width / 2
        for stroke in STROKES[letter]:
            pen.line([(left + x * width, 7.5 + y * 12) for x, y in stroke], 2.2, DARK)
    return pen.image
