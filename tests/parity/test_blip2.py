"""BLIP-2, InstructBLIP and the ITM model: transformers' classes with random weights, read into ours, and compared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from mmexp.connector import QformerConfig
from mmexp.contracts import IGNORE, Batch
from mmexp.encoder import LavisVisionConfig
from mmexp.hf.blip2 import hf_to_lavis, lavis_to_hf, ours_to_lavis
from mmexp.hf.blip2_import import place_blip2
from mmexp.hf.foreign import place
from mmexp.llm.causal import empty_llm
from mmexp.llm.seq2seq import Seq2SeqLlm
from mmexp.model import Branch, MultimodalModel
from tests.differences import Differences

E, W, Q, WORDS, IMAGE = 24, 16, 4, 40, 95
VISION = {"hidden_size": E, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
          "patch_size": 4}  # fmt: skip
QFORMER = {"hidden_size": W, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32,
           "encoder_hidden_size": E, "vocab_size": WORDS, "max_position_embeddings": 20}  # fmt: skip
OPT_CLASS, T5_CLASS = (f"Blip2ForConditionalGeneration ({llm})" for llm in ("OPT", "T5"))
INSTRUCT, SCORES = "InstructBlipForConditionalGeneration (OPT)", "Blip2ForImageTextRetrieval"
"""What the table calls the classes."""


def opt() -> Any:
    return transformers.OPTConfig(
        hidden_size=32, word_embed_proj_dim=32, num_hidden_layers=2, ffn_dim=48, num_attention_heads=2, vocab_size=96,
        max_position_embeddings=64, dropout=0.0,
    )  # fmt: skip


def t5() -> Any:
    return transformers.T5Config(
        d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=96, feed_forward_proj="gated-gelu",
        dense_act_fn="gelu", tie_word_embeddings=False, decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip


def randomised(model: Any) -> Any:
    """Weights that make every part matter; EVA's keys have no bias, and both sides one epsilon after the blocks."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.25)
        if "norm" in name.lower() and name.endswith("weight"):
            parameter.data += 1
        if name.endswith("self_attn.qkv.bias"):
            parameter.data[E : 2 * E] = 0
    model.vision_model.post_layernorm.eps = 1e-5  # LAVIS's; transformers has 1e-6 there
    return model.eval()


def ours(variant: Any, llm: Any = None, width: int = 0) -> MultimodalModel:
    encoder = LavisVisionConfig(path="", from_scratch=True, width=E, num_blocks=2, num_heads=2, mlp_width=36,
                                patch_size_px=4, image_size_px=16)  # fmt: skip
    connector = QformerConfig(variant=variant, num_queries=Q, width=W, num_layers=3, num_heads=2, ffn_width=32,
                              vocab_size=WORDS, max_text_tokens=20, max_instruction_tokens=20,
                              tokenizer="some/bert" if variant == "text" else None)  # fmt: skip
    branch = Branch(encoder.build(), connector.build(encoder.spec(), width), encoder.spec())
    return MultimodalModel(llm or torch.nn.Identity(), {"image": branch}).eval()


def generation(kind: str, text: Any, cls: Any = transformers.Blip2ForConditionalGeneration) -> Any:
    settings = {"vision_config": VISION, "qformer_config": QFORMER, "text_config": text.to_dict()}
    config_class = cls.config_class
    config = config_class(**settings, num_query_tokens=Q, image_token_index=IMAGE)
    return randomised(cls(config))


def batch_of(ids: torch.Tensor, images: torch.Tensor, num_said: int) -> Batch:
    """Rows of `Q` slots first; the last `num_said` tokens carry loss."""
    labels = torch.full_like(ids, IGNORE)
    labels[:, ids.shape[1] - num_said :] = ids[:, ids.shape[1] - num_said :]
    rows = len(ids)
    return Batch(
        input_ids=ids.masked_fill(ids == IMAGE, 1),
        labels=labels,
        positions=torch.arange(ids.shape[1]).repeat(rows, 1),
        segment_lengths=((ids.shape[1],),) * rows,
        prompt_lengths=((ids.shape[1] - num_said,),) * rows,
        ids=tuple("abc"[:rows]),
        slots={"image": ids == IMAGE},
        media={"image": images},
        slot_lengths={"image": (Q,) * rows},
        media_owners={"image": tuple("abc"[:rows])},
        num_supervised=num_said * rows,
    )


def prompts(length: int) -> torch.Tensor:
    torch.manual_seed(1)
    ids = torch.randint(4, 90, (2, Q + length))
    ids[:, :Q] = IMAGE
    return ids


@torch.no_grad()
def test_blip2_opt(differences: Differences) -> None:
    theirs = generation("generation", opt())
    model = ours("stripped", empty_llm(opt()), 32)
    state = theirs.state_dict()
    place(model.parts(), place_blip2(state, model.parts(), "test"), "test")
    ids, images = prompts(7), torch.randn(2, 3, 16, 16)
    batch = batch_of(ids, images, 3)
    output = model(batch)
    differences(OPT_CLASS, "soft tokens", output.soft["image"], theirs.get_image_features(images).pooler_output)
    differences(OPT_CLASS, "logits", model.llm.logits(output.hidden), theirs(pixel_values=images, input_ids=ids).logits)
    embeds, _ = model.embed(batch)
    mask = torch.ones_like(ids)
    answer = model.llm.model.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=8, do_sample=False)
    expected = theirs.generate(images, input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    differences.tokens(OPT_CLASS, "greedy tokens", answer.tolist(), expected[:, -answer.shape[1] :].tolist())
    back = lavis_to_hf(ours_to_lavis({name: part.state_dict() for name, part in model.parts().items()}), "generation")
    assert back.keys() == state.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in back.items())


@torch.no_grad()
def test_blip2_t5(differences: Differences) -> None:
    theirs = generation("generation", t5())
    model = ours("stripped", Seq2SeqLlm(transformers.AutoModelForSeq2SeqLM.from_config(t5())), 32)
    place(model.parts(), place_blip2(theirs.state_dict(), model.parts(), "test"), "test")
    ids, images = prompts(9), torch.randn(2, 3, 16, 16)
    batch = batch_of(ids, images, 4)
    hidden = model(batch).hidden[:, -5:-1]
    answer = ids[:, -4:]
    fed = torch.cat([torch.zeros(2, 1, dtype=torch.long), answer[:, :-1]], 1)
    reference = theirs(pixel_values=images, input_ids=ids[:, :-4], decoder_input_ids=fed)
    differences(T5_CLASS, "logits", model.llm.logits(hidden), reference.logits)
    prompt = ids[:, :-4]
    mask = torch.ones_like(prompt)
    embeds, _ = model.embed(batch_of(prompt, images, 0))
    said = model.llm.model.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=8, do_sample=False)
    expected = theirs.generate(images, input_ids=prompt, attention_mask=mask, max_new_tokens=8, do_sample=False)
    differences.tokens(T5_CLASS, "greedy tokens", said.tolist(), expected.tolist())


@torch.no_grad()
def test_instructblip(differences: Differences) -> None:
    theirs = generation("instruct", opt(), transformers.InstructBlipForConditionalGeneration)
    model = ours("text", empty_llm(opt()), 32)
    state = theirs.state_dict()
    place(model.parts(), place_blip2(state, model.parts(), "test"), "test")
    images, words = torch.randn(2, 3, 16, 16), torch.randint(1, WORDS, (2, 6))
    seen = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    branch: Any = model.inputs["image"]
    soft = branch.connector(branch.features(images), words, seen.bool())
    reference = theirs.get_image_features(images, qformer_input_ids=words, qformer_attention_mask=seen)
    differences(INSTRUCT, "soft tokens", soft, reference.pooler_output)
    ids = prompts(7)
    theirs_logits = theirs(
        pixel_values=images, qformer_input_ids=words, qformer_attention_mask=seen, input_ids=ids
    ).logits
    embeds = model.llm.embed(ids).masked_scatter((ids == IMAGE)[..., None], soft)
    batch = batch_of(ids, images, 1)
    hidden = model.llm.hidden(embeds, batch.positions, batch.segment_lengths, batch.prompt_lengths)
    differences(INSTRUCT, "logits", model.llm.logits(hidden), theirs_logits)
    back = lavis_to_hf(ours_to_lavis({name: part.state_dict() for name, part in model.parts().items()}), "instruct")
    assert back.keys() == state.keys()


def itm_model(image_token: int | None = None) -> Any:
    config = transformers.Blip2Config(
        vision_config=VISION,
        qformer_config={**QFORMER, "use_qformer_text_input": True},
        text_config=opt().to_dict(),
        num_query_tokens=Q,
        image_text_hidden_size=8,
        image_token_index=image_token,
    )
    return randomised(transformers.Blip2ForImageTextRetrieval(config))


@torch.no_grad()
def test_retrieval_scores(differences: Differences) -> None:
    from torch.nn import functional

    theirs = itm_model()
    model = ours("text")
    heads = torch.nn.ModuleDict(
        {"vision_proj": torch.nn.Linear(W, 8), "text_proj": torch.nn.Linear(W, 8), "itm_head": torch.nn.Linear(W, 2)}
    )
    parts = {**{name: part for name, part in model.parts().items() if name != "llm"}, "objective": heads}
    state = theirs.state_dict()
    place(parts, place_blip2(state, parts, "test"), "test")
    images, words = torch.randn(2, 3, 16, 16), torch.randint(1, WORDS, (2, 6))
    seen = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    branch: Any = model.inputs["image"]
    features, qformer = branch.features(images), branch.connector.qformer
    image = functional.normalize(heads["vision_proj"](qformer.look(features)[0]), dim=-1)
    text = functional.normalize(heads["text_proj"](qformer.read(words, seen.bool())[:, 0]), dim=-1)
    reference = theirs(pixel_values=images, input_ids=words, attention_mask=seen)
    differences(SCORES, "ITC scores", torch.einsum("iqw,tw->itq", image, text).amax(2), reference.logits_per_image)
    both = qformer.look_and_read(features, words, seen.bool())[:, :Q]
    matched = theirs(pixel_values=images, input_ids=words, attention_mask=seen, use_image_text_matching_head=True)
    differences(SCORES, "ITM logits", heads["itm_head"](both).mean(1), matched.logits_per_image)
    back = lavis_to_hf(ours_to_lavis({name: part.state_dict() for name, part in parts.items()}), "retrieval")
    assert back.keys() == state.keys()


@pytest.mark.parametrize("kind", ["generation", "instruct", "retrieval"])
def test_names_go_both_ways(kind: Any) -> None:
    if kind == "retrieval":
        model = itm_model()
    elif kind == "instruct":
        model = generation(kind, opt(), transformers.InstructBlipForConditionalGeneration)
    else:
        model = generation(kind, opt())
    state = model.state_dict()
    lavis = hf_to_lavis(state, kind)
    assert any(name.endswith("q_bias") for name in lavis)
    back = lavis_to_hf(lavis, kind)
    assert back.keys() == state.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in back.items())
