"""What a set says twice: rows, questions about an image, images."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mllm_align.datasets.inspect.seen import Seen
from mllm_align.records import Group


def repeats(groups: Sequence[Group], seen: Mapping[str, Seen]) -> dict[str, Any]:
    """Counts: rows that repeat another one in all, prompts asked again about an image, and images by what they show."""
    asked = Counter((group.example.image.key, group.example.prompt) for group in groups)
    whole = Counter(
        (
            group.example.image.key,
            group.example.prompt,
            group.example.reference,
            tuple(response.text for response in group.responses),
        )
        for group in groups
    )
    names: defaultdict[str, set[str]] = defaultdict(set)
    for key, image in seen.items():
        names[image.digest].add(key)
    several = {digest: found for digest, found in names.items() if len(found) > 1}
    return {
        "rows that repeat another": len(groups) - len(whole),
        "rows that ask again what was asked about the image": len(groups) - len(asked),
        "different images by name": len({group.example.image.key for group in groups}),
        "different images by content": len(names),
        "images under several names": [sorted(found)[:4] for found in list(several.values())[:10]],
    }
