"""The family's tokenizer: byte-level BPE whose merges make every word of the scenes world one token.

Byte level means that any text survives encode and decode unchanged; a word of the world costs one token, so the
small models spend no capacity on spelling. Runs of capitals (the letters on a sign) stay single letters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IMAGE, END, PAD, UNKNOWN = "<image>", "</s>", "<pad>", "<unk>"
SPECIAL_TOKENS = (UNKNOWN, END, PAD, IMAGE)
TEMPLATE_WORDS = ("USER", "ASSISTANT", ":", "A", "B", "Yes", "No")

# Images first, then text; an assistant's turn ends with </s>. `{% generation %}` marks what a loss is for.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] is string %}{% set text = message['content'] %}{% set images = [] %}{% else %}"
    "{% set text = message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') %}"
    "{% set images = message['content'] | selectattr('type', 'equalto', 'image') | list %}{% endif %}"
    "{% if message['role'] == 'system' %}{{ text + ' ' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' }}"
    "{% for image in images %}{{ '<image>\\n' }}{% endfor %}{{ text }}"
    "{% else %}{{ ' ASSISTANT:' }}{% generation %}{{ ' ' + text + '</s>' }}{% endgeneration %}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)


def _spellings(words: Iterable[str]) -> list[str]:
    """Each word as it stands, after a space, and both with a capital."""
    forms = {word for word in words if word}
    forms |= {word[:1].upper() + word[1:] for word in forms}
    return sorted(forms | {" " + word for word in forms})


def build_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: each of `words` (capitalised or not, with or without a space) is one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(unk_token=None))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000,  # never reached: merging stops when each word is one token
        min_frequency=1,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(_spellings([*words, *TEMPLATE_WORDS]), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=[IMAGE],
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",  # as in the published LLaVA checkpoints, so that a batch can be generated from
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
        chat_template=CHAT_TEMPLATE,
    )
