"""Images inside Parquet files, where there are too many to hold: each is read when it is asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mllm_align.datasets.parquet import HELD
from mllm_align.datasets.places import REFER_BYTES, RowImage, column_bytes

COLUMNS = ("images", "image")


@dataclass(frozen=True)
class Embedded:
    """The image column of a Parquet file: each row group's first row, from 0, and the bytes of its images."""

    file: Path
    column: str
    starts: tuple[int, ...]
    sizes: tuple[int, ...]

    def image(self, number: int, key: str) -> RowImage:
        """The image of a row, which counts from 1."""
        group = bisect_right(self.starts, number - 1) - 1
        refer = self.sizes[group] <= REFER_BYTES
        return RowImage(str(self.file), self.column, group, number - 1 - self.starts[group], key, refer)


def too_many(files: Iterable[Path]) -> dict[Path, Embedded]:
    """The Parquet files among these with images inside, if these are more than HELD bytes together; else none."""
    found = [one for one in map(_embedded, files) if one is not None]
    total = sum(sum(one.sizes) for one in found)
    return {one.file: one for one in found} if total > HELD else {}


def _embedded(file: Path) -> Embedded | None:
    try:
        with pq.ParquetFile(file) as opened:
            schema = opened.schema_arrow
            column = next((name for name in COLUMNS if name in schema.names), None)
            if column is None or "binary" not in str(schema.field(column).type):
                return None
            groups = range(opened.num_row_groups)
            ends = accumulate(opened.metadata.row_group(group).num_rows for group in groups)
            sizes = tuple(column_bytes(opened, column, group) for group in groups)
            return Embedded(file, column, (0, *ends)[:-1], sizes)
    except (pa.ArrowException, OSError):
        return None  # no Parquet file, or a damaged one: whoever reads its rows says so
