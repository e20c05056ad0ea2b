"""Memory and time of a published set at full size: 80,000 rows, made up in the released forms.

    python benchmarks/dataset_scale.py jsonl      VLFeedback: JSONL with four answers a row, images in a folder
    python benchmarks/dataset_scale.py zip        the same with its images in one zip archive
    python benchmarks/dataset_scale.py parquet    RLAIF-V: Parquet with the images inside

Prints the seconds (and those of the CPU) until the preference set is stored, until it is read back and until the
first batch is collated, and the peak of resident memory. The set is made first, in a process of its
own, and kept below --folder.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import time
import zipfile
from pathlib import Path

ROWS = 80_000
GROUP = 100  # rows in a row group, as `datasets` writes images


def photos(count: int = 64) -> list[bytes]:
    """JPEGs of 320 x 240 pixels and about 30 kB."""
    import numpy as np
    from PIL import Image

    made = []
    for seed in range(count):
        coarse = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        encoded = io.BytesIO()
        Image.fromarray(coarse).resize((320, 240)).save(encoded, "JPEG", quality=90)
        made.append(encoded.getvalue())
    return made


def answer(row: int, place: int) -> str:
    return f"Answer {place} to question {row}: " + "there is a person beside a table with a cup on it. " * 9


def make_jsonl(folder: Path, zipped: bool) -> None:
    encoded = photos()
    name = folder / "vlfeedback_80k.jsonl"
    with name.open("w") as file:
        for row in range(ROWS):
            ratings = [
                {"Rating": str(1 + (row + i) % 5), "Rationale": "because of this. " * 8} for i in range(4)
            ]
            aspects = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
            completions = [
                {
                    "annotations": dict.fromkeys(aspects, ratings[i]),
                    "model": f"m{i}",
                    "response": answer(row, i),
                }
                for i in range(4)
            ]
            line = {"id": f"llava-{row}", "prompt": "What is there to see?", "completions": completions}
            file.write(json.dumps(line) + "\n")
    if zipped:
        with zipfile.ZipFile(folder / "merged_images.zip", "w", zipfile.ZIP_STORED) as archive:
            for row in range(ROWS):
                archive.writestr(f"merged_images/llava-{row}.jpg", encoded[row % len(encoded)])
    else:
        (folder / "merged_images").mkdir()
        for row in range(ROWS):
            (folder / "merged_images" / f"llava-{row}.jpg").write_bytes(encoded[row % len(encoded)])


def make_parquet(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    encoded, schema = photos(), None
    for shard in range(8):
        writer = None
        for start in range(shard * ROWS // 8, (shard + 1) * ROWS // 8, GROUP):
            rows = [
                {
                    "ds_name": "made up",
                    "image": {"bytes": encoded[row % len(encoded)], "path": None},
                    "question": "What is there to see?",
                    "chosen": answer(row, 0),
                    "rejected": answer(row, 1),
                    "idx": str(row),
                    "image_path": f"{row}.jpg",
                }
                for row in range(start, start + GROUP)
            ]
            table = pa.Table.from_pylist(rows, schema)
            schema = table.schema
            writer = writer or pq.ParquetWriter(
                folder / f"RLAIF-V-Dataset_{shard:03}.parquet", schema, use_dictionary=False
            )
            writer.write_table(table)
        assert writer is not None
        writer.close()


def measure(kind: str, folder: Path) -> None:
    started = time.perf_counter()

    def say(what: str) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        wall, cpu = time.perf_counter() - started, time.process_time()
        print(f"{what:<42}{wall:7.1f} s   CPU {cpu:5.1f} s   peak {peak:.2f} GiB", flush=True)

    from mllm_align.datasets.parquet import read_groups, write_groups
    from mllm_align.datasets.published import sets

    if kind == "parquet":
        groups, report = sets.rlaif_v(path=str(folder))
    else:
        images = str(folder / ("merged_images.zip" if kind == "zip" else "merged_images"))
        groups, report = sets.vlfeedback(path=str(folder / "vlfeedback_80k.jsonl"), images=[images])
    say(f"{report['used']:,} rows read")
    stored = folder.parent / f"{kind}-stored" / "preferences.parquet"
    write_groups(stored, groups, refer=True)
    del groups
    say(f"stored ({stored.stat().st_size / 2**20:.0f} MiB)")
    kept = read_groups(stored)
    say("read back")
    from mllm_align.compute.packing import collate
    from mllm_align.models.load import load_processor

    processor = load_processor("asset://scenes/base")
    say("torch and a processor loaded")
    collate(kept[:16], processor)
    say("first batch of 16")
    begun = time.perf_counter()
    for number in range(0, len(kept), len(kept) // 200):
        kept[(number * 7919) % len(kept)].example.image.load()
    say(f"200 images in random order, {5 * (time.perf_counter() - begun):.1f} ms each")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=["jsonl", "zip", "parquet"])
    parser.add_argument("--folder", type=Path, default=Path("outputs/dataset_scale"))
    parser.add_argument("--measure", action="store_true", help="only measure: the set is there")
    arguments = parser.parse_args()
    folder = arguments.folder / arguments.kind
    if arguments.measure:
        return measure(arguments.kind, folder)
    if not folder.exists():
        folder.mkdir(parents=True)
        make_parquet(folder) if arguments.kind == "parquet" else make_jsonl(folder, arguments.kind == "zip")
    command = [sys.executable, __file__, arguments.kind, "--folder", str(arguments.folder), "--measure"]
    sys.exit(subprocess.run(command).returncode)


if __name__ == "__main__":
    main()
