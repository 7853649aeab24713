"""LLaVA's published preprocessing, re-stated for comparison.

Source: haotian-liu/LLaVA @ c121f04 llava/mm_utils.py tokenizer_image_token, llava/conversation.py (v1),
llava/train/train.py preprocess_multimodal and preprocess_plain. -200 stands for a picture.
"""

from __future__ import annotations

IMAGE = -200
MARK = "<image>"


def tokenize(text: str, tokenizer) -> list[int]:
    """Ids of a rendered conversation: every chunk on its own, special tokens parsed, the first bos kept."""
    ids: list[int] = []
    for number, chunk in enumerate(text.split(MARK)):
        chunk_ids = tokenizer(chunk).input_ids
        has_bos = bool(chunk_ids) and chunk_ids[0] == tokenizer.bos_token_id
        ids += [IMAGE] if number else []
        ids += chunk_ids[1:] if has_bos and number else chunk_ids
    return ids


def _human(value: str) -> str:
    if MARK not in value:
        return value
    return (MARK + "\n" + value.replace(MARK, "").strip()).strip()


def vicuna_text(conversation: list[dict], system: str) -> tuple[str, list[tuple[int, int]]]:
    """The text of template v1, and the character spans of the answers with their `</s>`."""
    text, spans = system + " ", []
    for turn in conversation:
        if turn["from"] == "human":
            text += "USER: " + _human(turn["value"]) + " "
        else:
            text += "ASSISTANT:"
            spans.append((len(text), len(text) + len(f" {turn['value']}</s>")))
            text += f" {turn['value']}</s>"
    return text, spans


def plain_text(conversation: list[dict]) -> str:
    """The text of template plain: the picture, the caption, a newline."""
    return MARK + conversation[1]["value"] + "\n"
