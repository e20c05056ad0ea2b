"""A scene to reason about by hand."""

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
