"""Our forward pass against transformers' LlavaForConditionalGeneration with the same weights."""

from __future__ import annotations

from dataclasses import replace

import torch
import transformers
from PIL import Image
from torch.nn import functional

from mmexp.connector import MlpConfig
from mmexp.contracts import IGNORE, Batch, Medium, Sample, Text, Turn
from mmexp.encoder import TinyVisionConfig
from mmexp.engine import Generator
from mmexp.llm import TinyLlmConfig
from mmexp.model import Branch, InputPlan, MultimodalModel, Plan
from mmexp.objective import NextToken
from mmexp.prompt import ChatTemplate
from tests.differences import Differences

IMAGE_TOKEN = 258
CLASS = "LlavaForConditionalGeneration"


def pair() -> tuple[MultimodalModel, transformers.LlavaForConditionalGeneration]:
    """One model in both frameworks."""
    torch.manual_seed(0)
    vision = TinyVisionConfig()
    encoder, llm = vision.build(), TinyLlmConfig().build()
    full = transformers.CLIPVisionModel(encoder.model.config)
    kept = encoder.model.state_dict()
    full.load_state_dict(kept, strict=False)
    connector = MlpConfig(depth=2).build(vision.spec(), 32)
    ours = MultimodalModel(llm, {"image": Branch(encoder, connector, vision.spec())}).eval()
    config = transformers.LlavaConfig(
        vision_config=full.config.to_dict(), text_config=llm.model.config.to_dict(), image_token_index=IMAGE_TOKEN
    )
    theirs = transformers.LlavaForConditionalGeneration(config).eval()
    theirs.model.vision_tower.load_state_dict(full.state_dict())
    theirs.model.language_model.load_state_dict(llm.model.model.state_dict())
    theirs.lm_head.load_state_dict(llm.model.lm_head.state_dict())
    for name, index in (("linear_1", 0), ("linear_2", 2)):
        getattr(theirs.model.multi_modal_projector, name).load_state_dict(connector[index].state_dict())
    return ours, theirs


def batch_of(ids: torch.Tensor, images: torch.Tensor) -> Batch:
    """Two samples of 4 image slots each, in one flat row; everything after the image is supervised."""
    labels = ids.clone()
    labels[ids == IMAGE_TOKEN] = IGNORE
    labels[:, 0] = IGNORE
    return Batch(
        input_ids=ids.reshape(1, -1),
        labels=labels.reshape(1, -1),
        positions=torch.arange(ids.shape[1]).repeat(len(ids))[None],
        segment_lengths=((ids.shape[1],) * len(ids),),
        ids=("a", "b"),
        slots={"image": (ids == IMAGE_TOKEN).reshape(1, -1)},
        media={"image": images},
        slot_lengths={"image": (4, 4)},
        media_owners={"image": ("a", "b")},
        num_supervised=int((labels != IGNORE).sum()),
    )


def test_logits_loss_and_gradients_equal_transformers(differences: Differences) -> None:
    ours, theirs = pair()
    torch.manual_seed(1)
    ids = torch.randint(3, 250, (2, 12))
    ids[:, 1:5] = IMAGE_TOKEN
    images = torch.randn(2, 3, 28, 28)
    batch = batch_of(ids, images)
    logits = ours.llm.logits(ours(batch).hidden).reshape(2, 12, -1)
    labels = batch.labels.reshape(2, 12)
    reference = theirs(input_ids=ids, pixel_values=images, labels=labels)
    differences(CLASS, "logits", logits, reference.logits, 1e-5)
    losses = NextToken()(ours, batch)
    loss = losses.sums["lm"] / losses.counts["lm"]
    differences(CLASS, "loss", loss, reference.loss, 1e-5)
    loss.backward()
    reference.loss.backward()
    for name, index in (("linear_1", 0), ("linear_2", 2)):
        mine = ours.inputs["image"].connector[index].weight.grad
        other = getattr(theirs.model.multi_modal_projector, name).weight.grad
        differences(CLASS, "connector gradients", mine, other, 1e-6, 1e-4)


def test_generation_equals_transformers(differences: Differences) -> None:
    ours, theirs = pair()
    ids = torch.randint(3, 250, (1, 9))
    ids[:, 2:6] = IMAGE_TOKEN
    image = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        reference = theirs.generate(
            input_ids=ids, pixel_values=image, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=2
        )[0, 9:]
    tokenizer = TinyLlmConfig().load_tokenizer()
    batch = batch_of(ids, image)
    batch = Batch(**{**vars(batch), "slot_lengths": {"image": (4,)}, "media_owners": {"image": ("a",)}, "ids": ("a",)})
    from mmexp.llm import Sampling

    text = ours.generate(batch, tokenizer, Sampling(max_new_tokens=6))
    differences.tokens(CLASS, "greedy text", text, [tokenizer.decode(reference, skip_special_tokens=True).strip()])


def test_scores_of_candidates_equal_transformers(differences: Differences) -> None:
    ours, theirs = pair()
    plan = Plan(
        inputs={"image": InputPlan(encoder=TinyVisionConfig(), connector=MlpConfig(depth=2))},
        llm=TinyLlmConfig(),
        template=ChatTemplate(name="short", media="first_if_single"),
        max_length_tokens=512,
    )
    texts = ["yes", "no", "a red star", "a red ring"]
    asked = Turn(role="user", parts=(Medium(source=Image.new("RGB", (40, 30), (200, 9, 90))), Text(text="What?")))
    sample = Sample(id="s", turns=(asked,))
    expected = []
    for text in texts:
        said = Turn(role="assistant", parts=(Text(text=text),))
        item = plan.processor.encode(replace(sample, turns=(asked, said)))
        ids = item.input_ids.clone()
        for run in item.runs:
            ids[run.start : run.start + run.length] = IMAGE_TOKEN
        with torch.no_grad():
            logits = theirs(input_ids=ids[None], pixel_values=torch.stack(item.media["image"])).logits[0]
        places = (item.labels != IGNORE).nonzero().flatten()[:-1]  # all of the answer but its end
        chances = functional.log_softmax(logits[places - 1].float(), -1)
        expected.append(chances.gather(1, ids[places, None]).sum())
    (scores,) = Generator(ours, plan).score([sample], [texts])
    assert [score.num_tokens for score in scores] == [len(f" {text}") for text in texts]
    found = torch.tensor([score.log_prob for score in scores])
    differences(CLASS, "scores of candidates", found, torch.stack(expected), 1e-5, 1e-6)
