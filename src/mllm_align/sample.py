"""`mllm-align sample`: a preference set as Parquet, in the form that TRL and `dataset=local` read, and a page of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mllm_align.entry import command


def _run(config: dict[str, Any]) -> None:
    from mllm_align import stages
    from mllm_align.tables.samples import write_samples

    stages.set_threads(config["trainer"]["threads"])
    groups, report = stages.sampled(config)
    out = Path(config["out"])
    stages.write_groups(out, groups)
    print(f"{len(groups)} groups in {out}")
    print("".join(f"{line}\n" for line in told(report)), end="")
    server = config["generation"]["build"]
    model = config["base_model"]["name"] if server is None else server["model"]
    title = f"{config['sampler']['name']} on {config['dataset']['name']} with {model}"
    page = write_samples(
        groups, config["page"] or out.with_suffix(".html"), title, report, config["shown"], config["seed"]
    )
    print(f"page with pictures: {page}")


def told(report: dict[str, Any]) -> list[str]:
    """The report in lines; the shares by iteration (Figure 10) in one."""
    lines = []
    for name, value in report.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key}: {part}" for key, part in value.items()) or "none"
        if name == "below eps_s":
            name = "share below eps_s by iteration (Figure 10)"
        lines.append(f"  {name}: {value}")
    return lines


main = command("sample", _run)


if __name__ == "__main__":
    sys.exit(main())
