"""A scene to reason about by hand, and what a text makes up about one."""

from mllm_align.scenes.oracle import Mentioned, mentioned_objects, present_objects
from mllm_align.scenes.world import Scene, Sign, Thing

# | red cup    | green apple | .          |
# | blue plate | sign KT     | .          |
# | .          | green apple | small white chair |
KITCHEN = Scene(
    "sft",
    0,
    "kitchen",
    (
        Thing("cup", "red", 0),
        Thing("apple", "green", 1),
        Thing("plate", "blue", 3),
        Thing("apple", "green", 7),
        Thing("chair", "white", 8, size="small"),
    ),
    Sign("KT", 4),
)


def hallucinated_objects(text: str, scene: Scene) -> list[Mentioned]:
    """The mentioned things that are not in the scene."""
    return [m for m in mentioned_objects(text) if m.kind not in present_objects(scene)]
