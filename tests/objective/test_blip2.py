"""BLIP-2's first stage against its equations, written out one pair at a time."""

from __future__ import annotations

import math
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing
from torch.nn import functional

from mmexp.connector import MlpConfig
from mmexp.connector.qformer_layers import additive
from mmexp.contracts import Losses
from mmexp.data import Collator
from mmexp.data.dataset import Dropped
from mmexp.engine.gather import gather_rows
from mmexp.errors import ConfigError, DataError
from mmexp.llm import NoLlmConfig, TinyLlmConfig
from mmexp.objective import Blip2RepresentConfig, NextTokenConfig
from mmexp.objective.pairs import draw
from tests.assets.make_bert import make_tokenizer
from tests.differences import Differences
from tests.objective.blip2_parts import make_batch, make_model, make_plan, make_samples

SMOOTHING = 0.1


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The weights of every draw, which takes the likeliest."""
    return likeliest(monkeypatch.setattr)


def likeliest(setattr_: Any) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []

    def draw(weights: torch.Tensor, count: int) -> torch.Tensor:
        assert count == 1
        seen.append(weights)
        return weights.argmax(1, keepdim=True)

    setattr_(torch, "multinomial", draw)
    return seen


class Slow:
    """The three losses, as sums, of rows that are given one by one."""

    def __init__(self, model: Any, objective: Any, batch: Any, image_ids: list[int]) -> None:
        self.qformer, self.heads, self.ids = model.inputs["image"].connector.qformer, objective, image_ids
        self.features = model.inputs["image"].encoder(batch.media["image"])
        self.texts: list[list[int]] = []
        for row, start, end in batch.spans():
            slots = batch.slots["image"][row, start:end].tolist()
            tokens = zip(batch.input_ids[row, start:end].tolist(), slots, strict=True)
            self.texts.append([token for token, is_slot in tokens if not is_slot])
        self.size = len(self.texts)
        looks = [self.qformer.look(self.image(index))[0][0] for index in range(self.size)]
        reads = [self.qformer.read(*self.text(index))[0, 0] for index in range(self.size)]
        self.queries = [functional.normalize(objective.vision_proj(look), dim=-1) for look in looks]
        self.said = [functional.normalize(objective.text_proj(read), dim=-1) for read in reads]
        self.near = [[self.nearness(i, t).item() for t in range(self.size)] for i in range(self.size)]

    def text(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.tensor([self.texts[index]])
        return ids, torch.ones_like(ids, dtype=torch.bool)

    def image(self, index: int) -> torch.Tensor:
        return self.features[index : index + 1]

    def nearness(self, image: int, text: int, ask: str = "both") -> torch.Tensor:
        """Max over queries of the cosine, over the temperature; what is not asked has no gradient."""
        queries, said = self.queries[image], self.said[text]
        queries = queries.detach() if ask == "text" else queries
        said = said.detach() if ask == "image" else said
        return max((query @ said for query in queries), key=lambda value: value.item()) / self.heads.temp

    def itc(self) -> torch.Tensor:
        total = torch.zeros(())
        for one in range(self.size):
            for ask in ("image", "text"):
                pairs = [(one, other) if ask == "image" else (other, one) for other in range(self.size)]
                logits = torch.stack([self.nearness(i, t, ask) for i, t in pairs])
                same = [float(self.ids[one] == self.ids[other]) for other in range(self.size)]
                for other, log_probability in enumerate(logits.log_softmax(0)):
                    target = (1 - SMOOTHING) * same[other] / sum(same) + SMOOTHING / self.size
                    total = total - target * log_probability / 2
        return total

    def candidates(self, one: int) -> list[int]:
        return [other for other in range(self.size) if self.ids[other] != self.ids[one]]

    def itm(self) -> tuple[torch.Tensor, int]:
        pairs = [(index, index, 1) for index in range(self.size)]
        for one in range(self.size):
            if self.candidates(one):
                hardest_image = max(self.candidates(one), key=lambda image, t=one: self.near[image][t])
                hardest_text = max(self.candidates(one), key=lambda text, i=one: self.near[i][text])
                pairs += [(hardest_image, one, 0), (one, hardest_text, 0)]
        total = torch.zeros(())
        for image, text, label in pairs:
            rows = self.qformer.look_and_read(self.image(image), *self.text(text))[0, :4]
            total = total + functional.cross_entropy(self.heads.itm_head(rows).mean(0), torch.tensor(label))
        return total, len(pairs)

    def itg(self, bos: int) -> tuple[torch.Tensor, int]:
        total, count = torch.zeros(()), 0
        for index, tokens in enumerate(self.texts):
            length = len(tokens)
            visible = torch.zeros(4 + length, 4 + length, dtype=torch.bool)
            visible[:, :4] = True
            visible[4:, 4:] = torch.ones(length, length).tril().bool()
            asked = torch.tensor([[bos, *tokens[1:]]])
            hidden = self.qformer.bert.embeddings(self.qformer.query_tokens, asked)
            bias = additive(visible[None, None], hidden.dtype)
            out, _ = self.qformer.bert.encoder(hidden, 4, self.image(index), bias)
            for place, label in enumerate(tokens[1:]):
                logs = self.qformer.words(out[0, 4 + place]).log_softmax(0)
                total = total - (1 - SMOOTHING) * logs[label] - SMOOTHING * logs.mean()
                count += 1
        return total, count


def check(
    differences: Differences, tokenizer: Path, image_ids: tuple[Any, ...], same: list[int], row: str = "flat"
) -> Losses:
    plan = make_plan(tokenizer)
    model, objective = make_model(plan)
    batch = make_batch(plan, make_samples(len(same), image_ids), row)
    losses = objective(model, batch)
    parameters = [p for p in [*model.parameters(), *objective.parameters()] if p.requires_grad]
    slow = Slow(model, objective, batch, same)
    itm, num_pairs = slow.itm()
    itg, num_tokens = slow.itg(objective.bos_id)
    assert losses.counts == {"itc": len(same), "itm": num_pairs, "itg": num_tokens}
    for name, expected in {"itc": slow.itc(), "itm": itm, "itg": itg}.items():
        differences(f"{name.upper()} loss", "equations, one rank", losses.sums[name], expected, 1e-4, 1e-4)
        own = torch.autograd.grad(losses.sums[name], parameters, retain_graph=True, allow_unused=True)
        reference = torch.autograd.grad(expected, parameters, retain_graph=True, allow_unused=True)
        for parameter, found, wanted in zip(parameters, own, reference, strict=True):
            zero = torch.zeros_like(parameter)
            found, wanted = zero if found is None else found, zero if wanted is None else wanted
            differences(f"{name.upper()} loss", "gradients, one rank", found, wanted, 1e-3, 1e-3)
    return losses


@pytest.mark.parametrize("row", ["flat", "padded"])
def test_losses_and_gradients_equal_the_equations(
    differences: Differences, tokenizer: Path, drawn: list[torch.Tensor], row: str
) -> None:
    losses = check(differences, tokenizer, (), [0, 1, 2, 3], row)
    assert losses.counts["itm"] == 3 * 4
    for weights in drawn:
        torch.testing.assert_close(weights.sum(1), torch.ones(4))
        assert weights.diagonal().max() == 0
    assert set(losses.report) == {"temp", "itc_accuracy", "itm_accuracy"}


def test_samples_of_one_image_are_pairs_and_never_negatives(
    differences: Differences, tokenizer: Path, drawn: list[torch.Tensor]
) -> None:
    check(differences, tokenizer, ("coco_9", 5, "coco_9", None), [9, 5, 9, -4])
    assert all(weights[0, 2] == 0 and weights[2, 0] == 0 and weights[0, 1] > 0 for weights in drawn)


def test_a_batch_of_one_has_no_negative(differences: Differences, tokenizer: Path) -> None:
    losses = check(differences, tokenizer, (), [0])
    assert losses.counts["itm"] == 1
    assert losses.sums["itc"] == 0


def test_one_image_all_over_draws_nothing(differences: Differences, tokenizer: Path) -> None:
    assert check(differences, tokenizer, (3, 3), [3, 3]).counts["itm"] == 2


def test_negatives_are_drawn_as_often_as_they_are_near() -> None:
    similarity = torch.tensor([[5.0, 1.0, 0.0]]).repeat(4000, 1)
    same = torch.tensor([[True, False, False]]).repeat(4000, 1)
    torch.manual_seed(0)
    share = (draw(similarity.masked_fill(same, -10000.0)) == 1).float().mean()
    assert abs(float(share) - math.e / (1 + math.e)) < 0.03


def test_a_batch_that_lost_all_its_samples_still_takes_part(tokenizer: Path) -> None:
    plan = make_plan(tokenizer)
    model, objective = make_model(plan)
    batch = Collator(pad_id=0, row="flat")([Dropped(id="x", dataset="", reason="too_long")])
    losses = objective(model, batch)
    assert losses.counts == {"itc": 0, "itm": 0, "itg": 0}
    total = sum(losses.sums.values(), torch.zeros(()))
    total.backward()
    assert total == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(
    ("weights", "variant", "names"),
    [
        ({"itg": 0.0}, "text", ["itc", "itm"]),
        ({"itm": 0.0, "itg": 0.5}, "full", ["itc", "itg"]),
        ({"itc": 0.0}, "full", ["itm", "itg"]),
    ],
)
def test_parts_can_be_left_out(tokenizer: Path, weights: dict[str, float], variant: str, names: list[str]) -> None:
    plan = make_plan(tokenizer, variant=variant)
    model, objective = make_model(plan, **weights)
    losses = objective(model, make_batch(plan, make_samples(3)))
    assert list(losses.sums) == names == list(losses.counts)
    assert losses.weights == {name: weights.get(name, 1.0) for name in names}
    sum(losses.sums.values(), torch.zeros(())).backward()
    heads = {name for name, parameter in objective.named_parameters() if parameter.grad is None}
    assert not heads


def test_captions_are_cut_and_keep_their_end(tokenizer: Path) -> None:
    plan = make_plan(tokenizer)
    _, objective = make_model(plan)
    samples = make_samples(3)
    ids, mask = objective.texts(make_batch(plan, samples))
    control = plan.tokenizer.control_id
    assert ids.shape == (3, 8)  # [CLS], six tokens, [SEP]
    assert ids[:, 0].tolist() == [control("[CLS]")] * 3
    assert [int(row[keep][-1]) for row, keep in zip(ids, mask, strict=True)] == [control("[SEP]")] * 3
    assert plan.tokenizer.decode(ids[0, 1:4].tolist()) == "a red circle"
    assert objective.bos_id == control("[DEC]") == plan.tokenizer.vocab_size - 1


def test_what_cannot_be_is_said_before_weights_load(tokenizer: Path) -> None:
    def refused(match: str, plan: Any, **weights: float) -> None:
        with pytest.raises(ConfigError, match=match):
            Blip2RepresentConfig(**weights).build(plan)

    refused("connector=qformer_full", make_plan(tokenizer, variant="stripped"))
    refused("connector=qformer_full", make_plan(tokenizer, variant="text"))
    refused("connector=qformer_text", make_plan(tokenizer, variant="full"), itg=0.0)
    refused("connector=qformer_full", make_plan(tokenizer, connector=MlpConfig(), llm=TinyLlmConfig()))
    refused("90 tokens", make_plan(tokenizer, vocab_size=80))
    with pytest.raises(ConfigError, match="leads into an LLM"):
        make_plan(tokenizer, connector=MlpConfig())
    with pytest.raises(ConfigError, match="no LLM"):
        NextTokenConfig().build(make_plan(tokenizer)).requires(make_plan(tokenizer))
    with pytest.raises(ConfigError, match="weights"):
        Blip2RepresentConfig(itc=0.0, itm=0.0, itg=0.0)


def test_a_sample_needs_one_image_and_a_text_that_fits(tokenizer: Path) -> None:
    plan = make_plan(tokenizer)
    model, objective = make_model(plan)
    first, second = make_samples(2)
    alone = replace(second, turns=(replace(second.turns[0], parts=second.turns[0].parts[1:]), second.turns[1]))
    with pytest.raises(DataError, match="0 images"):
        objective(model, make_batch(plan, [first, alone]))
    short = make_plan(tokenizer, max_text_tokens=4)
    with pytest.raises(DataError, match="at most 4"):
        make_model(short)[1].texts(make_batch(short, [first]))


def test_no_llm_lends_its_tokenizer_and_refuses_the_rest(tokenizer: Path) -> None:
    config = NoLlmConfig(tokenizer=str(tokenizer), bos_token="[DEC]")
    spec = config.spec()
    assert (spec.width, spec.vocab_size) == (0, 90)
    assert NoLlmConfig(tokenizer="google-bert/bert-base-uncased", bos_token="[DEC]").spec().vocab_size == 30523
    llm = config.build()
    assert not list(llm.parameters())
    with pytest.raises(ConfigError, match="no LLM"):
        llm.logits(torch.zeros(1, 1))


def _share(rank: int, world: int, tokenizer: Path) -> dict[str, torch.Tensor]:
    """Loss sums, and the gradient of their sum, of this rank's samples: three of five, and two."""
    plan = make_plan(tokenizer)
    model, objective = make_model(plan)
    model.requires_grad_(True)
    objective.gather = gather_rows
    samples = make_samples(5, (None, "a", None, None, "a"))
    losses = objective(model, make_batch(plan, [samples, samples[:3], samples[3:]][rank + world - 1]))
    sum(losses.sums.values(), torch.zeros(())).backward()
    named = [*model.inputs["image"].named_parameters(), *objective.named_parameters()]
    gradients = {name: p.grad for name, p in named if p.grad is not None}
    return {name: value.detach() for name, value in losses.sums.items()} | gradients


def _rank(rank: int, port: int, tokenizer: Path, out: Path) -> None:
    torch.set_num_threads(1)
    likeliest(setattr)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save(_share(rank, 2, tokenizer), out / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_sum_to_one(
    differences: Differences, tokenizer: Path, tmp_path: Path, drawn: list[torch.Tensor]
) -> None:
    """All sums and all gradients, with ranks of different sizes: the draw aside, ranks change nothing."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(_rank, (port, tokenizer, tmp_path), nprocs=2)  # type: ignore[attr-defined]
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    alone = _share(0, 1, tokenizer)
    assert ranks[0].keys() == ranks[1].keys() == alone.keys()
    assert any(name.startswith("encoder.") for name in alone)
    for name, expected in alone.items():
        kind = ("ITC + ITM + ITG", "gradients, two ranks")
        if name in ("itc", "itm", "itg"):
            kind = (f"{name.upper()} loss", "two ranks")
        differences(*kind, ranks[0][name] + ranks[1][name], expected, 2e-4, 1e-3)
