"""Groups about scenes, whose truth is known: one true sentence, a false one, and two true ones."""

from __future__ import annotations

from mllm_align.records import Example, Group, Response
from mllm_align.scenes.draw import SceneImage
from mllm_align.scenes.text import DESCRIBE_PROMPTS
from mllm_align.scenes.world import KINDS, sample_scene


def scene_groups(count: int, responses: int = 3) -> list[Group]:
    groups = []
    for index in range(count):
        scene = sample_scene("preference", index)
        here = sorted(scene.kinds)
        absent = next(kind for kind in sorted(KINDS) if kind not in scene.kinds)
        texts = [
            f"There is a {here[0]}.",
            f"There is a {absent}.",
            f"There is a {here[0]}. There is a {here[1]}.",
        ]
        example = Example(
            f"scene{index}", SceneImage(scene), DESCRIBE_PROMPTS[0], meta={"scene": scene.to_json()}
        )
        groups.append(Group(example, tuple(Response(text) for text in texts[:responses])))
    return groups
