"""Losses against their formulas, written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from mmexp.connector import MlpConfig
from mmexp.contracts import IGNORE, Batch
from mmexp.encoder import TinyVisionConfig
from mmexp.errors import ConfigError, DataError
from mmexp.llm import TinyLlmConfig
from mmexp.model import Branch, InputPlan, MultimodalModel, Plan
from mmexp.objective import NextToken, RegionContrastive, RegionContrastiveConfig
from mmexp.objective.region_contrastive import owners
from mmexp.prompt import ChatTemplate


def model() -> MultimodalModel:
    spec = TinyVisionConfig().spec()
    torch.manual_seed(0)
    branch = Branch(TinyVisionConfig().build(), MlpConfig().build(spec, 32), spec)
    return MultimodalModel(TinyLlmConfig().build(), {"image": branch}).eval()


def text_batch(rows: list[list[int]], first_supervised: int) -> Batch:
    """One flat row of text-only segments, supervised from position `first_supervised` of each."""
    ids = torch.tensor([token for row in rows for token in row])[None]
    labels = torch.cat([torch.tensor([IGNORE] * first_supervised + row[first_supervised:]) for row in rows])[None]
    return Batch(
        input_ids=ids,
        labels=labels,
        positions=torch.cat([torch.arange(len(row)) for row in rows])[None],
        segment_lengths=(tuple(map(len, rows)),),
        ids=tuple(f"s{index}" for index in range(len(rows))),
        num_supervised=int((labels != IGNORE).sum()),
    )


def test_next_token_is_the_shifted_cross_entropy_of_each_segment() -> None:
    net, rows = model(), [[5, 9, 30, 31], [7, 8, 9, 10, 11]]
    losses = NextToken()(net, text_batch(rows, 2))
    expected = torch.zeros(())
    for row in rows:
        logits = net.llm.model(input_ids=torch.tensor([row])).logits[0]
        expected = expected + functional.cross_entropy(logits[1:-1], torch.tensor(row[2:]), reduction="sum")
    torch.testing.assert_close(losses.sums["lm"], expected)
    assert losses.counts == {"lm": 5}


def test_a_batch_without_supervision_gives_zero_and_a_graph() -> None:
    net = model()
    loss = NextToken()(net, text_batch([[5, 6, 7]], 3)).sums["lm"]
    loss.backward()
    assert loss == 0
    assert net.llm.model.lm_head.weight.grad is None or net.llm.model.lm_head.weight.grad.abs().sum() == 0


def region_objective() -> RegionContrastive:
    plan = Plan(
        inputs={"image": InputPlan(encoder=TinyVisionConfig(), connector=MlpConfig())},
        llm=TinyLlmConfig(),
        template=ChatTemplate(name="short"),
        max_length_tokens=256,
    )
    torch.manual_seed(0)
    return RegionContrastiveConfig(width=32, patches_per_region=2).build(plan)


def region_batch(objective: RegionContrastive, answers: list[str]) -> Batch:
    rows = [[1, *objective.tokenizer(answer, add_special_tokens=False).input_ids] for answer in answers]
    batch = text_batch(rows, 1)
    images = {"image": torch.randn(len(rows), 3, 28, 28)}
    return Batch(**{**vars(batch), "media": images, "slot_lengths": {"image": (4,) * len(rows)}})


TWO = "small red circle [0.00, 0.00, 0.50, 0.50]\nblue star [0.50, 0.50, 1.00, 1.00]"


def test_a_patch_belongs_to_the_box_that_covers_it_most() -> None:
    boxes = [(0.0, 0.0, 0.5, 0.5), (0.4, 0.0, 1.0, 0.5), (0.9, 0.9, 0.91, 0.91)]
    assert owners(boxes, (2, 2)) == [[0], [1], []]
    assert owners([(0.0, 0.0, 1.0, 1.0)], (2, 3)) == [[0, 1, 2, 3, 4, 5]]


def test_regions_are_read_from_the_answers() -> None:
    objective = region_objective()
    found = objective.regions(region_batch(objective, [TWO, "red circle [0.00, 0.00, 1.00, 1.00]"]))
    encode = objective.tokenizer
    assert [(region.image, region.box) for region, _ in found] == [
        (0, (0.0, 0.0, 0.5, 0.5)), (0, (0.5, 0.5, 1.0, 1.0)), (1, (0.0, 0.0, 1.0, 1.0))
    ]  # fmt: skip
    assert found[0][0].words[1] == tuple(encode(" red", add_special_tokens=False).input_ids)
    assert [patches for _, patches in found[:2]] == [[0], [3]]
    assert len(found[2][1]) == 2  # four are covered, two are drawn


def test_statements_are_tails_of_the_phrase_and_one_for_each_edge() -> None:
    objective = region_objective()
    (region, _), *_ = objective.regions(region_batch(objective, [TWO]))
    words = region.words
    tails = [words[0] + words[1] + words[2], words[1] + words[2], words[2]]
    said = objective.statements(region)
    assert said[:3] == [(tail, None, None) for tail in tails]
    assert [(side, value) for _, side, value in said[3:]] == list(enumerate(region.box))
    assert all(tail in tails for tail, _, _ in said[3:])


def test_region_contrastive_is_infonce_in_both_directions() -> None:
    objective, net = region_objective(), model()
    batch = region_batch(objective, [TWO, "large red circle [0.00, 0.50, 1.00, 1.00]"])
    torch.manual_seed(7)
    losses = objective(net, batch)
    torch.manual_seed(7)
    features = net.inputs["image"].encoder(batch.media["image"])
    said, patches, true = [], [], set()
    for region, owned in objective.regions(batch):
        indices = []
        for statement in objective.statements(region):
            if statement not in said:
                said.append(statement)
            indices.append(said.index(statement))
        for patch in owned:
            true |= {(index, len(patches)) for index in indices}
            patches.append(features[region.image, patch])
    similarity = objective.similarity(torch.stack(patches), said).tolist()
    expected = 0.0
    for statement, patch in true:
        own = math.exp(similarity[statement][patch])
        other_patches = sum(
            math.exp(similarity[statement][p]) for p in range(len(patches)) if (statement, p) not in true
        )
        other_texts = sum(math.exp(similarity[s][patch]) for s in range(len(said)) if (s, patch) not in true)
        expected -= (math.log(own / (own + other_patches)) + math.log(own / (own + other_texts))) / 2
    torch.testing.assert_close(float(losses.sums["contrastive"].detach()), expected, rtol=1e-4, atol=1e-4)
    assert losses.counts["contrastive"] == len(true)


def test_a_line_without_a_box_is_refused() -> None:
    objective = region_objective()
    with pytest.raises(DataError, match="a red circle") as caught:
        objective(model(), region_batch(objective, ["a red circle"]))
    assert "s0" in str(caught.value)
    assert "[0.12, 0.34, 0.56, 0.78]" in str(caught.value)


def test_region_contrastive_needs_images() -> None:
    plan = Plan(inputs={}, llm=TinyLlmConfig(), template=ChatTemplate(name="short"), max_length_tokens=256)
    with pytest.raises(ConfigError, match="no image branch"):
        RegionContrastiveConfig().build(plan)
