"""`mllm-align data check`: what is in a dataset, before anything is trained on it.

Every row is read and every image opened. The exit status is 1 where rows or images can't be used, else 0.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mllm_align.entry import command

SHOWN = 20
BAD = 1


def _run(config: dict[str, Any]) -> int:
    """Writes and prints what was found; BAD where something can't be used."""
    from mllm_align.store import write_json
    from mllm_align.tables.dataset_page import write_page

    groups, found = check(config)
    lines = told(found)
    out = Path(config["out"])
    write_json(out / "check.json", found)
    print("\n".join(lines))
    visible = [group for group in groups if group.example.image.key not in found["images"]["wrong"]]
    page = write_page(visible, out / "page.html", found["dataset"], lines, config["shown"], config["seed"])
    print(f"report: {out / 'check.json'}\npage with pictures: {page}")
    return BAD if found["rows"]["skipped"] or found["images"]["wrong"] else 0


def check(config: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The Groups of the dataset, and everything that the report says of them."""
    from mllm_align import stages
    from mllm_align.datasets.inspect.overlaps import benchmark_images, overlaps
    from mllm_align.datasets.inspect.repeats import repeats
    from mllm_align.datasets.inspect.seen import look

    dataset = config["dataset"]
    groups, report = stages.build_dataset(lenient(dataset.get("check") or dataset["build"]))
    groups = list(groups)
    seen, wrong = look(groups)
    benchmarks = {name: benchmark_images(Path(path)) for name, path in config["benchmarks"].items()}
    found: dict[str, Any] = {
        "dataset": dataset["name"],
        "groups": len(groups),
        "rows": {"skipped": [], **report},
        "images": {"seen": len(seen), "wrong": wrong, "sizes": sizes(seen)},
        "repeats": repeats(groups, seen),
        "overlaps": overlaps(groups, seen, benchmarks),
        "tokens": tokens(config, groups, seen),
    }
    if dataset.get("check"):
        found["rows"]["instead"] = "the answers before they are corrupted: nothing is paid for here"
    return groups, found


def lenient(build: Mapping[str, Any]) -> dict[str, Any]:
    """The build that goes on past rows that can't be used, and looks at every image."""
    wanted = {"on_bad_row": "skip", "check_images": "whole"}
    return {**build, **{name: value for name, value in wanted.items() if name in build}}


def sizes(seen: Mapping[str, Any]) -> dict[str, Any]:
    """Width and height (pixels) of the smallest and the largest image."""
    if not seen:
        return {}
    ordered = sorted((image.size for image in seen.values()), key=lambda size: size[0] * size[1])
    return {"smallest": list(ordered[0]), "largest": list(ordered[-1])}


def tokens(config: Mapping[str, Any], groups: list[Any], seen: Mapping[str, Any]) -> dict[str, Any] | None:
    """Lengths under the base model; None where none is named."""
    model = config.get("base_model")
    if model is None:
        return None
    from mllm_align import stages
    from mllm_align.datasets.inspect.lengths import context_of, lengths
    from mllm_align.models.load import load_processor

    stages.quiet_libraries()
    limit = config["max_length"] or model["max_length"]
    measured = lengths(groups, seen, load_processor(model["path"]), limit, context_of(model["path"]))
    return {"base_model": model["name"], **measured}


# --- in words ----------------------------------------------------------------------------------------------


def told(found: Mapping[str, Any]) -> list[str]:
    """The report in lines."""
    return [
        *_rows(found),
        *_images(found["images"], found["repeats"]),
        *_overlaps(found["overlaps"]),
        *_tokens(found["tokens"]),
    ]


def _rows(found: Mapping[str, Any]) -> list[str]:
    rows = found["rows"]
    read = f"{rows['rows']:,} rows read, " if isinstance(rows.get("rows"), int) else ""
    lines = [f"{found['dataset']}: {read}{found['groups']:,} to train on"]
    if "instead" in rows:
        lines.append(f"  looked at: {rows['instead']}")
    for title in ("without_a_pair", "notes"):
        lines += [f"  {name}: {count:,}" for name, count in (rows.get(title) or {}).items()]
    skipped = rows["skipped"]
    if skipped:
        lines.append(f"  rows that can't be used: {len(skipped):,}")
        lines += [f"    {problem}" for problem in skipped[:SHOWN]]
        lines += [f"    ... and {len(skipped) - SHOWN:,} more."] if len(skipped) > SHOWN else []
    return lines


def _images(images: Mapping[str, Any], repeated: Mapping[str, Any]) -> list[str]:
    lines = [f"images: {images['seen']:,} opened, {len(images['wrong']):,} can't be"]
    lines += [f"  {key}: {fault}" for key, fault in list(images["wrong"].items())[:SHOWN]]
    if images["sizes"]:
        small, large = (" x ".join(map(str, images["sizes"][name])) for name in ("smallest", "largest"))
        lines.append(f"  from {small} to {large} pixels")
    lines.append("repeats:")
    lines += [f"  {name}: {value:,}" for name, value in repeated.items() if isinstance(value, int)]
    lines += [f"  the same picture: {', '.join(names)}" for names in repeated["images under several names"]]
    return lines


def _overlaps(report: Mapping[str, Any]) -> list[str]:
    lines = ["images of benchmarks:"]
    for name, shared in report.items():
        if shared is None:
            continue
        content = shared["shared by content"]
        also = "no files to compare contents" if content is None else f"{content:,} by content"
        such = f", such as {', '.join(shared['such as'][:3])}" if shared["such as"] else ""
        lines.append(
            f"  {name}: {shared['shared by name']:,} of its {shared['images']:,} by name, {also}; "
            f"{shared['rows']:,} rows{such}"
        )
    absent = [name for name, shared in report.items() if shared is None]
    return [*lines, f"  not at hand, so not compared: {', '.join(absent)}"] if absent else lines


def _tokens(report: Mapping[str, Any] | None) -> list[str]:
    if report is None:
        return ["tokens: name a base_model to have them counted"]
    lines = [f"tokens under {report['base_model']} ({report['rows']:,} rows; least, middle, 95%, most):"]
    for name in ("image", "prompt", "response", "whole"):
        if report.get(name):
            lines.append(f"  {name:<9}" + "".join(f"{value:>8,}" for value in report[name].values()))
    if report.get("max_length"):
        lines.append(
            f"  max_length={report['max_length']:,} cuts the end of {report['cut responses']:,} responses "
            f"({report['cut tokens']:,} tokens) in {report['rows with a cut response']:,} rows, "
            f"and leaves no room in {report['rows whose prompt leaves no room']:,}; images and prompts are never cut"
        )
        lines += [f"    {name}" for name in (*report["such as"], *report["refused, such as"])]
    elif "max_length" in report:
        lines.append("  max_length=null: nothing is cut")
    if report.get("rows beyond the context"):
        lines.append(
            f"  {report['rows beyond the context']:,} rows are longer than the model's context of {report['context']:,}"
        )
    return lines


main = command("data_check", _run, logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
