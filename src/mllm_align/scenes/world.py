"""The scenes world: what can be in a picture, how often, and together with what.

A scene is a pure function of (split, index). Its exact content is known, including the things that are too
faint, too small or too covered to be seen well. Things of a context occur together far more often than
chance, so a model that describes such pictures learns a prior that competes with what it sees.

Splits never share a scene: each owns a share of all possible contents, by the content's hash.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

# Per context its kinds, the most frequent first. Some kinds belong to several contexts.
CONTEXTS: dict[str, tuple[str, ...]] = {
    "kitchen": ("cup", "plate", "bottle", "apple", "knife", "banana", "chair", "clock"),
    "street": ("car", "bus", "bicycle", "hydrant", "tree", "dog", "bench", "umbrella"),
    "park": ("tree", "bench", "dog", "bird", "flower", "ball", "kite", "bicycle"),
    "office": ("laptop", "chair", "phone", "book", "cup", "lamp", "clock", "bottle"),
    "beach": ("umbrella", "boat", "ball", "fish", "bird", "kite", "dog", "bottle"),
    "bedroom": ("bed", "lamp", "cat", "book", "clock", "phone", "flower", "cup"),
}
RANK_WEIGHTS = (1.0, 0.9, 0.75, 0.65, 0.55, 0.45, 0.4, 0.35)
# Pairs that go together inside a context: once one is there the other is PARTNER_BOOST times as likely.
PARTNERS: tuple[tuple[str, str], ...] = (
    ("cup", "plate"),
    ("knife", "plate"),
    ("apple", "banana"),
    ("car", "bus"),
    ("car", "hydrant"),
    ("tree", "bench"),
    ("dog", "ball"),
    ("bird", "flower"),
    ("laptop", "phone"),
    ("laptop", "chair"),
    ("umbrella", "ball"),
    ("boat", "fish"),
    ("kite", "bird"),
    ("bed", "lamp"),
    ("bed", "cat"),
    ("book", "clock"),
)
PARTNER_BOOST = 8.0
STRAY_SHARE = 0.05  # of the kinds come from any context

KINDS: tuple[str, ...] = tuple(dict.fromkeys(kind for kinds in CONTEXTS.values() for kind in kinds))
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 36),
    "orange": (250, 134, 16),
    "yellow": (248, 222, 40),
    "green": (36, 150, 52),
    "blue": (36, 84, 216),
    "purple": (142, 46, 176),
    "white": (250, 250, 250),
    "black": (26, 26, 28),
}
# The cells of the 3x3 grid, row by row.
PLACES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
LETTERS = "EHKLOPTXYZ"
SIZES = ("normal", "small")

KIND_COUNTS = {3: 0.30, 4: 0.40, 5: 0.20, 6: 0.10}  # how many different kinds a scene has
MANY_SHARE = 0.35  # of the scenes have one kind two or three times
SIGN_SHARE = 0.45
SMALL_SHARE = 0.15
FAINT_SHARE = 0.35
FAINT_CONTRAST = (0.04, 0.30)
CLEAR_CONTRAST = (0.75, 1.0)
COVERED_SHARE = 0.12
NOISE_STD = (8.0, 48.0)  # of the pixels, in 0..255 at 96x96; log-uniform

# Each split owns these of 16 buckets of the content hash.
BUCKETS: dict[str, frozenset[int]] = {
    "sft": frozenset(range(8)),
    "preference": frozenset({8, 9}),
    "reward_heldout": frozenset({10, 11}),
    "validation": frozenset({12, 13}),
    "evaluation": frozenset({14, 15}),
}
SPLITS = tuple(BUCKETS)


@dataclass(frozen=True)
class Thing:
    """One drawn object. `place` indexes PLACES; `shift` is the icon's offset in its cell, in pixels.

    `contrast` in 0..1 mixes the icon into the background; `cover` is None or the bar that hides a part of it:
    (vertical as 0/1, start in 0..1, width in 0..1, grey level 0..255).
    """

    kind: str
    colour: str
    place: int
    size: str = "normal"
    contrast: float = 1.0
    shift: tuple[int, int] = (0, 0)
    cover: tuple[int, float, float, int] | None = None


@dataclass(frozen=True)
class Sign:
    """A board with two or three capital letters."""

    text: str
    place: int
    contrast: float = 1.0


@dataclass(frozen=True)
class Backdrop:
    """Wall and floor: base colour, floor line (pixel row), floor shade, and the pixel noise."""

    tint: tuple[float, float, float] = (165.0, 165.0, 165.0)
    floor: int = 64
    shade: float = 0.0
    noise_std: float = 0.0
    noise_start: int = 0


@dataclass(frozen=True)
class Entity:
    """All things of one kind in a scene: they share colour and size."""

    kind: str
    colour: str
    size: str
    places: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.places)


@dataclass(frozen=True)
class Scene:
    split: str
    index: int
    context: str
    things: tuple[Thing, ...]
    sign: Sign | None = None
    backdrop: Backdrop = Backdrop()

    @property
    def id(self) -> str:
        return f"scenes/{self.split}/{self.index}"

    @functools.cached_property
    def entities(self) -> tuple[Entity, ...]:
        """One per kind, in the order of `things`."""
        groups: dict[str, list[Thing]] = {}
        for thing in self.things:
            groups.setdefault(thing.kind, []).append(thing)
        return tuple(
            Entity(kind, members[0].colour, members[0].size, tuple(sorted(t.place for t in members)))
            for kind, members in groups.items()
        )

    @functools.cached_property
    def kinds(self) -> frozenset[str]:
        return frozenset(t.kind for t in self.things)

    def entity(self, kind: str) -> Entity | None:
        return next((e for e in self.entities if e.kind == kind), None)

    def at(self, place: int) -> str | None:
        """The kind (or "sign") in a cell, None when it is empty."""
        if self.sign is not None and self.sign.place == place:
            return "sign"
        return next((t.kind for t in self.things if t.place == place), None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Scene:
        """The inverse of `to_json`, also after a trip through JSON text (which turns tuples into lists)."""
        sign = data.get("sign")
        back = data["backdrop"]
        return Scene(
            split=data["split"],
            index=int(data["index"]),
            context=data["context"],
            things=tuple(_thing_from_json(t) for t in data["things"]),
            sign=None if sign is None else Sign(sign["text"], int(sign["place"]), float(sign["contrast"])),
            backdrop=Backdrop(**{**back, "tint": tuple(back["tint"])}),
        )


def _thing_from_json(data: Mapping[str, Any]) -> Thing:
    cover = data["cover"]
    fixed = {"shift": tuple(data["shift"]), "cover": None if cover is None else tuple(cover)}
    return Thing(**{**data, **fixed})


def _content_digest(context: str, cells: list[tuple[str, str, int]], sign: Sign | None) -> str:
    words = [
        context,
        *(f"{place}:{colour} {kind}" for kind, colour, place in sorted(cells, key=lambda c: c[2])),
    ]
    if sign is not None:
        words.append(f"{sign.place}:sign {sign.text}")
    return hashlib.blake2b("|".join(words).encode(), digest_size=12).hexdigest()


def rng_for(*parts: object) -> np.random.Generator:
    """A generator whose stream depends on the parts (names and numbers) alone."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def _uniforms(rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield from rng.random(128).tolist()


def _weighted(u: float, weights: Mapping[Any, float]) -> Any:
    """The key whose cumulated weight first exceeds u times the sum."""
    left = u * sum(weights.values())
    for key, weight in weights.items():
        left -= weight
        if left < 0:
            return key
    return key


@functools.cache
def _partners(kind: str) -> frozenset[str]:
    return frozenset(b for pair in PARTNERS for a, b in (pair, pair[::-1]) if a == kind)


def _sample_kinds(context: str, draw: Iterator[float]) -> list[str]:
    """Different kinds for one scene: ranked by the context, drawn together by PARTNERS, a few strays."""
    weights = dict(zip(CONTEXTS[context], RANK_WEIGHTS, strict=True))
    number = _weighted(next(draw), KIND_COUNTS)
    chosen: list[str] = []
    while len(chosen) < number:
        if next(draw) < STRAY_SHARE:
            kind = KINDS[int(next(draw) * len(KINDS))]
        else:
            kind = _weighted(next(draw), weights)
        if kind in chosen:
            continue
        chosen.append(kind)
        weights.pop(kind, None)
        for partner in _partners(kind) & weights.keys():
            weights[partner] *= PARTNER_BOOST
    return chosen


def _between(u: float, bounds: tuple[float, float]) -> float:
    return bounds[0] + u * (bounds[1] - bounds[0])


def _contrast(draw: Iterator[float]) -> float:
    faint = next(draw) < FAINT_SHARE
    return round(_between(next(draw), FAINT_CONTRAST if faint else CLEAR_CONTRAST), 3)


def _cover(draw: Iterator[float]) -> tuple[int, float, float, int] | None:
    if next(draw) >= COVERED_SHARE:
        return None
    vertical, width = int(next(draw) * 2), _between(next(draw), (0.35, 0.6))
    start = next(draw) * (1 - width)
    return vertical, round(start, 3), round(width, 3), int(_between(next(draw), (90, 200)))


def _places(number: int, draw: Iterator[float]) -> list[int]:
    cells = list(range(len(PLACES)))
    return [cells.pop(int(next(draw) * len(cells))) for _ in range(number)]


def _backdrop(context: str, draw: Iterator[float]) -> Backdrop:
    """The context moves the tint by less than chance does, so that it tells little."""
    level = _between(next(draw), (135.0, 185.0))
    lean = CONTEXT_LEAN[context]
    tint = tuple(round(level + lean[c] + 40.0 * (next(draw) - 0.5), 1) for c in range(3))
    low, high = np.log(NOISE_STD[0]), np.log(NOISE_STD[1])
    return Backdrop(
        tint=(tint[0], tint[1], tint[2]),
        floor=int(_between(next(draw), (40, 80))),
        shade=round(_between(next(draw), (-30.0, 10.0)), 1),
        noise_std=round(float(np.exp(_between(next(draw), (low, high)))), 2),
        noise_start=int(next(draw) * 2**31),
    )


CONTEXT_LEAN: dict[str, tuple[float, float, float]] = {
    "kitchen": (9.0, 2.0, -8.0),
    "street": (-5.0, -5.0, 0.0),
    "park": (-8.0, 10.0, -8.0),
    "office": (-6.0, 0.0, 8.0),
    "beach": (10.0, 6.0, -6.0),
    "bedroom": (7.0, -6.0, 5.0),
}


def sample_scene(split: str, index: int) -> Scene:
    """Scene number `index` of a split; the same for ever. Raises ValueError for an unknown split."""
    if split not in BUCKETS:
        raise ValueError(f"unknown split {split!r}; the scenes world has {', '.join(SPLITS)}")
    draw = _uniforms(rng_for("scenes-v1", split, index))
    context = tuple(CONTEXTS)[int(next(draw) * len(CONTEXTS))]
    kinds = _sample_kinds(context, draw)
    names = tuple(COLOURS)
    looks = [(k, names[int(next(draw) * 8)], SIZES[next(draw) < SMALL_SHARE]) for k in kinds]
    if next(draw) < MANY_SHARE:
        again = looks[int(next(draw) * len(looks))]
        looks += [again] * (1 + int(next(draw) * 2))
    text = None
    if next(draw) < SIGN_SHARE:
        text = "".join(LETTERS[int(next(draw) * len(LETTERS))] for _ in range(2 + int(next(draw) * 2)))
    while True:  # new places until the content falls into the split's share
        places = _places(len(looks) + (text is not None), draw)
        cells = [(kind, colour, place) for (kind, colour, _), place in zip(looks, places, strict=False)]
        sign = None if text is None else Sign(text, places[-1])
        if int(_content_digest(context, cells, sign)[0], 16) in BUCKETS[split]:
            break
    things = tuple(
        Thing(kind, colour, place, size, _contrast(draw), _shift(draw), _cover(draw))
        for (kind, colour, size), place in zip(looks, places, strict=False)
    )
    if sign is not None:
        sign = Sign(sign.text, sign.place, _contrast(draw))
    return Scene(split, index, context, things, sign, _backdrop(context, draw))


def _shift(draw: Iterator[float]) -> tuple[int, int]:
    return int(next(draw) * 5) - 2, int(next(draw) * 5) - 2


@functools.cache
def _kind_sets(number: int = 12_000) -> np.ndarray:
    """(number, kinds) 0/1: which kinds are in each of many scenes of a fixed stream outside all splits."""
    draw = _uniforms(rng_for("scenes-v1", "cooccurrence"))
    column = {kind: i for i, kind in enumerate(KINDS)}
    present = np.zeros((number, len(KINDS)), dtype=np.float32)
    contexts = tuple(CONTEXTS)
    for row in range(number):
        for kind in _sample_kinds(contexts[row % len(contexts)], draw):
            present[row, column[kind]] = 1.0
    return present


@functools.cache
def cooccurrence() -> np.ndarray:
    """(kinds, kinds): P(kind b is in the scene | kind a is), rows a and columns b in the order of KINDS.

    A fixed Monte-Carlo estimate (12,000 scenes, standard error about 0.01); the diagonal is 1.
    """
    present = _kind_sets()
    both = present.T @ present
    return both / np.diag(both)[:, None]


@functools.cache
def popularity() -> dict[str, float]:
    """P(kind is in a scene)."""
    return dict(zip(KINDS, _kind_sets().mean(axis=0).tolist(), strict=True))


def plausibility(scene: Scene) -> dict[str, float]:
    """For each absent kind how much the kinds present make one expect it: the largest P(absent | present)."""
    rows = [KINDS.index(kind) for kind in scene.kinds]
    expect = cooccurrence()[rows].max(axis=0).tolist()
    return {kind: value for kind, value in zip(KINDS, expect, strict=True) if kind not in scene.kinds}
