"""The plain twin of the shared-prefix forward: every response is a row of its own, by the book.

Whole texts go through the processor as its authors meant, the whole rows through the model's own forward with
a 2D mask, logits for all positions. Nothing here uses mllm_align.compute.
"""

from __future__ import annotations

import torch

from mllm_align.models.load import end_token, prompt_text


def whole_text(processor, prompt: str, answer: str) -> str:
    """The conversation as its chat template writes it, up to the token that ends the answer."""
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    text = processor.apply_chat_template(turns, tokenize=False)
    end = processor.tokenizer.decode([end_token(processor)])
    return text[: text.index(end, len(prompt_text(processor, prompt))) + len(end)]


def plain_logprobs(model, groups, processor) -> list[list[torch.Tensor]]:
    """Token log-probabilities of each response of each group, (tokens,) each, the end token last."""
    rows = [(group.example, response) for group in groups for response in group.responses]
    prompts = [prompt_text(processor, example.prompt) for example, _ in rows]
    texts = [whole_text(processor, example.prompt, response.text) for example, response in rows]
    images = [example.image.load() for example, _ in rows]
    inputs = processor(images=images, text=texts, return_tensors="pt", padding=True, padding_side="right")
    starts = [
        len(processor(images=i, text=p, return_tensors="pt")["input_ids"][0])
        for i, p in zip(images, prompts, strict=True)
    ]
    logits = model(**inputs, use_cache=False).logits.float()
    logprobs = logits[:, :-1].log_softmax(-1).gather(2, inputs["input_ids"][:, 1:, None]).squeeze(2)
    ends = inputs["attention_mask"].sum(1).tolist()
    flat = iter(row[start - 1 : end - 1] for row, start, end in zip(logprobs, starts, ends, strict=True))
    return [[next(flat) for _ in group.responses] for group in groups]
