"""Losses against their formulas, written out."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from mmexp.connector import MlpConfig
from mmexp.contracts import IGNORE, Batch
from mmexp.encoder import TinyVisionConfig
from mmexp.llm import TinyLlmConfig
from mmexp.model import Branch, InputPlan, MultimodalModel, Plan
from mmexp.objective import ContrastiveConfig, NextToken
from mmexp.prompt import ChatTemplate

NEWLINE = TinyLlmConfig().load_tokenizer()("\n").input_ids[0]


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


def test_contrastive_pulls_true_lines_to_their_images() -> None:
    plan = Plan(
        inputs={"image": InputPlan(encoder=TinyVisionConfig(), connector=MlpConfig())},
        llm=TinyLlmConfig(),
        template=ChatTemplate(name="short"),
        max_length_tokens=256,
    )
    torch.manual_seed(0)
    net, objective = model(), ContrastiveConfig(width=16).build(plan)
    shared, own = [40, 41], [50]
    rows = [[1, *shared, NEWLINE, *own], [1, *shared]]
    batch = text_batch(rows, 1)
    images = torch.randn(2, 3, 28, 28)
    batch = Batch(**{**vars(batch), "media": {"image": images}, "slot_lengths": {"image": (4, 4)}})
    ids, true = objective.lines(batch)
    assert ids.tolist() == [[40, 41], [50, 0]]
    assert true.tolist() == [[True, True], [True, False]]
    losses = objective(net, batch)
    similarity = objective.similarity(net.inputs["image"].encoder(images), ids)
    pairs = [(0, 0), (0, 1), (1, 0)]
    expected = 0.0
    for line, image in pairs:
        others_of_line = [similarity[line, m] for m in range(2) if not true[line, m]]
        others_of_image = [similarity[u, image] for u in range(2) if not true[u, image]]
        for others in (others_of_line, others_of_image):
            weight = sum(math.exp(float(other)) for other in others)
            own_weight = math.exp(float(similarity[line, image]))
            expected += -math.log(own_weight / (own_weight + weight)) / 2
    torch.testing.assert_close(float(losses.sums["contrastive"]), expected, rtol=1e-4, atol=1e-5)
    assert losses.counts["contrastive"] == 3
