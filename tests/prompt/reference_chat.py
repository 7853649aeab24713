"""Published preprocessing of the chat templates besides LLaVA-1.5's, re-stated: ids and labels of one conversation.

Every function takes a conversation in LLaVA's layout and a tokenizer, and gives ids with -200 for a picture, and labels
with -100 where there is no loss. Sources: haotian-liu/LLaVA @ c121f04 llava/train/train.py (v0, llama_2),
Vision-CAIR/MiniGPT-4 @ d94738a minigpt4/models/minigpt_base.py, salesforce/LAVIS @ 506965b blip2_opt.py, QwenLM/Qwen-VL
@ aa00ed0 finetune.py, OpenGVLab/InternVL @ 2410d1d internvl_chat/internvl/train/dataset.py.
"""

from __future__ import annotations

from tests.prompt.reference import IMAGE, MARK, _human, tokenize

NONE = -100


def said(conversation: list[dict]) -> list[tuple[str, str]]:
    """Questions and answers in pairs."""
    values = [turn["value"] for turn in conversation]
    return list(zip(values[::2], values[1::2], strict=True))


def plain_ids(text: str, tokenizer) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def vicuna_v0(conversation, tokenizer, system):
    """The whole text at once; the mask is counted from the lengths of blocks that were tokenised alone."""
    blocks = []
    for question, answer in said(conversation):
        blocks += [f"### Human: {_human(question)}\n", f"### Assistant: {answer}\n"]
    header = f"{system}\n\n"
    ids = tokenize(header + "".join(blocks) + "### ", tokenizer)
    labels = list(ids)
    start = len(tokenize(header, tokenizer))
    labels[:start] = [NONE] * start
    for number, block in enumerate(blocks):
        length = len(tokenize(block, tokenizer))
        if number % 2 == 0:
            labels[start + 2 : start + length] = [NONE] * (length - 2)
        start += length
    return ids, [NONE if index == IMAGE else label for index, label in zip(ids, labels, strict=True)]


def llama_2(conversation, tokenizer, system):
    """Rounds end at </s>; the instruction is all tokens up to `[/INST] ` but its BOS and the last space."""
    text = ""
    for number, (question, answer) in enumerate(said(conversation)):
        head = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system and not number else ""
        text += f"<s>[INST] {head}{_human(question)} [/INST] {answer} </s>"
    text = text.removeprefix("<s>")
    ids = tokenize(text, tokenizer)
    labels, cursor = list(ids), 1
    labels[0] = NONE
    for chunk in (chunk for chunk in text.split("</s>") if chunk):
        instruction = chunk.split("[/INST] ")[0] + "[/INST] "
        masked = len(tokenize(instruction, tokenizer)) - 2
        labels[cursor : cursor + masked] = [NONE] * masked
        cursor += len(tokenize(chunk, tokenizer))
    assert cursor == len(ids)
    return ids, labels


def mistral(conversation, tokenizer):
    """Llama-2's words with one BOS; the answer with the space before </s> is what carries loss."""
    text, ends = "", []
    for question, answer in said(conversation):
        text += f"[INST] {_human(question)} [/INST]"
        ends.append((len(text), len(text) + len(f" {answer} </s>")))
        text += f" {answer} </s>"
    return tokenize(text, tokenizer), ends, text


def minigpt4(conversation, tokenizer, limit, prompt=None):
    """One exchange: BOS, then the pieces of the prompt around the picture and the target, each tokenised alone."""
    question, answer = said(conversation)[0]
    words = prompt or question.replace(MARK, "").strip()
    target = plain_ids(f"{answer}###", tokenizer)[:limit]
    ids = [tokenizer.bos_token_id, *plain_ids("###Human: <Img>", tokenizer), IMAGE]
    ids += plain_ids(f"</Img> {words} ###Assistant: ", tokenizer)
    return ids + target, [NONE] * len(ids) + target


def minigpt4_llama2(conversation, tokenizer, limit, prompt=None):
    """The same with Llama-2's words; the end symbol is the text </s>, which the slow tokenizer reads as EOS."""
    question, answer = said(conversation)[0]
    words = prompt or question.replace(MARK, "").strip()
    target = [*plain_ids(answer, tokenizer), tokenizer.eos_token_id][:limit]
    ids = [tokenizer.bos_token_id, *plain_ids("[INST] <Img>", tokenizer), IMAGE]
    ids += plain_ids(f"</Img> {words} [/INST] ", tokenizer)
    return ids + target, [NONE] * len(ids) + target


def minigpt4_align(caption, tokenizer, limit):
    """BOS, the picture, the caption with a newline, cut."""
    target = plain_ids(f"{caption}\n", tokenizer)[:limit]
    return [tokenizer.bos_token_id, IMAGE, *target], [NONE, NONE, *target]


def minigptv2(conversation, tokenizer):
    """The first question around the picture; later ones with a written BOS, which a legacy tokenizer cuts off."""
    ids, labels = [], []
    has_picture = any(MARK in turn["value"] for turn in conversation)
    for question, answer in said(conversation):
        words = question.replace(MARK, "").strip() + (" " if has_picture else "")
        asked = [f"[INST] <Img>{MARK}</Img> {words} [/INST]" if MARK in question else f"[INST] {words} [/INST]"]
        condition = [tokenizer.bos_token_id]
        for number, piece in enumerate(asked[0].split(MARK)):
            condition += ([IMAGE] if number else []) + plain_ids(piece, tokenizer)
        target = plain_ids(f"{answer}</s>", tokenizer)
        ids += condition + target
        labels += [NONE] * len(condition) + target
    return ids, labels


def blip2(text, tokenizer, prompt_tokens, limit):
    """Queries, then the tokenizer's own BOS and the text; what belongs to the prompt is masked, BOS included."""
    tokens = tokenizer(text, truncation=True, max_length=limit).input_ids
    return [IMAGE, *tokens], [NONE, *[NONE] * prompt_tokens, *tokens[prompt_tokens:]]


def qwen_vl(conversation, tokenizer, system):
    """Turn by turn: marks, role, newline, words and closing newline tokenised apart."""
    start, end = (tokenizer.convert_tokens_to_ids(f"<|im_{name}|>") for name in ("start", "end"))
    newline, picture = plain_ids("\n", tokenizer), 0

    def parts(text):
        nonlocal picture
        found = []
        for number, piece in enumerate(text.split(MARK)):
            if number:
                picture += 1
                found += plain_ids(f"Picture {picture}: ", tokenizer)
                found += [tokenizer.convert_tokens_to_ids("<img>"), IMAGE, tokenizer.convert_tokens_to_ids("</img>")]
                piece = "\n" + piece.removeprefix("\n")
            found += plain_ids(piece, tokenizer)
        return found

    ids, labels = [], []
    turns = [("system", system), *((("user", "assistant")[n % 2], t["value"]) for n, t in enumerate(conversation))]
    for role, words in turns:
        if role == "user" and words.count(MARK) == 1:
            words = _human(words)
        name, body = plain_ids(role, tokenizer) + newline, parts(words)
        ids += [start, *name, *body, end, *newline]
        shown = body if role == "assistant" else [NONE] * len(body)
        labels += [start, *[NONE] * len(name), *shown, end, *newline]
    return ids, labels


def qwen_vl_base(conversation, tokenizer):
    """One string after the picture, as the paper's appendix prints it; loss on what stands behind the prompt."""
    ids, labels = [], []
    for question, answer in said(conversation):
        if MARK in question:
            tags = [tokenizer.convert_tokens_to_ids(tag) for tag in ("<img>", "</img>")]
            ids += [tags[0], IMAGE, tags[1]]
            labels += [NONE] * 3
        asked = question.replace(MARK, "").strip()
        found = tokenizer(f"{asked} {answer}", add_special_tokens=False, return_offsets_mapping=True)
        ids += [*found.input_ids, tokenizer.eos_token_id]
        ends = [end for _, end in found.offset_mapping]
        labels += [i if end > len(asked) else NONE for i, end in zip(found.input_ids, ends, strict=True)]
        labels.append(tokenizer.eos_token_id)
    return ids, labels


def internvl(conversation, tokenizer, system, newline):
    """Piece by piece: BOS where the tokenizer has one, a turn, its mark; the answer and its mark carry loss."""
    image = [tokenizer.convert_tokens_to_ids("<img>"), IMAGE, tokenizer.convert_tokens_to_ids("</img>")]

    def words(text):
        found = []
        for number, piece in enumerate(text.split(MARK)):
            found += (image if number else []) + plain_ids(piece, tokenizer)
        return found

    ids = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    ids += plain_ids(f"<|im_start|>system\n{system}<|im_end|>{newline}", tokenizer)
    labels = [NONE] * len(ids)
    for question, answer in said(conversation):
        asked = words(f"<|im_start|>user\n{question}<|im_end|>{newline}")
        asked += plain_ids("<|im_start|>assistant\n", tokenizer)
        target, tail = plain_ids(f"{answer}<|im_end|>", tokenizer), plain_ids(newline, tokenizer) if newline else []
        ids += asked + target + tail
        labels += [NONE] * len(asked) + target + [NONE] * len(tail)
    return ids, labels
