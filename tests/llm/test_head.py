"""The loss in chunks against all logits at once: same loss, same gradients, never all logits."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmexp.llm.causal import CausalLlm, empty_llm
from mmexp.llm.head import Head
from tests.llm.test_causal import SMALL

Gradients = dict[str, torch.Tensor]
LLMS = {
    "llama": lambda: empty_llm(transformers.LlamaConfig(**SMALL)),
    "tied": lambda: empty_llm(transformers.Qwen2Config(**SMALL, tie_word_embeddings=True)),
    "divided": lambda: empty_llm(transformers.GraniteConfig(**SMALL, logits_scaling=2.5)),
    "multiplied": lambda: empty_llm(transformers.CohereConfig(**SMALL)),
    "capped": lambda: empty_llm(transformers.Gemma3TextConfig(**SMALL, head_dim=8, final_logit_softcapping=0.2)),
    "with a bias": lambda: with_bias(empty_llm(transformers.LlamaConfig(**SMALL))),
    "new tokens behind": lambda: grown(empty_llm(transformers.LlamaConfig(**SMALL)), 100, 3),
    "new tokens in spare rows": lambda: grown(with_bias(empty_llm(transformers.LlamaConfig(**SMALL))), 90, 4),
    "tied new tokens": lambda: grown(empty_llm(transformers.Qwen2Config(**SMALL, tie_word_embeddings=True)), 98, 5),
}


def with_bias(llm: CausalLlm) -> CausalLlm:
    llm.model.lm_head = nn.Linear(32, 100)
    return llm


def grown(llm: CausalLlm, first: int, count: int) -> CausalLlm:
    llm.add_tokens(first, count)
    return llm


def run(head: Head, hidden: torch.Tensor, labels: torch.Tensor, chunk: int | None) -> tuple[float, Gradients]:
    """Loss, and gradients of three times the loss (a later normalisation) with respect to hidden states and weights."""
    head.linear.zero_grad()
    hidden = hidden.clone().requires_grad_()
    loss = head.loss(hidden * 1, labels, chunk)
    (loss * 3).backward()
    found = {name: weight.grad for name, weight in head.linear.named_parameters() if weight.grad is not None}
    return loss.item(), {name: grad.clone() for name, grad in found.items()} | {"hidden": hidden.grad}


def same(head: Head, hidden: torch.Tensor, labels: torch.Tensor, chunk: int, tolerance: float = 1e-6) -> Gradients:
    loss, grads = run(head, hidden, labels, chunk)
    expected, wanted = run(head, hidden, labels, None)
    assert loss == pytest.approx(expected, rel=tolerance)
    assert grads.keys() == wanted.keys()
    for name, grad in wanted.items():
        assert grads[name].dtype == grad.dtype
        torch.testing.assert_close(grads[name], grad, atol=tolerance * float(1 + grad.abs().max()), rtol=0, msg=name)
    return grads


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("kind", LLMS)
def test_loss_and_gradients_equal_those_of_all_logits(kind: str, chunk: int) -> None:
    torch.manual_seed(0)
    head = LLMS[kind]().head
    for weight in head.linear.parameters():
        nn.init.normal_(weight, std=0.5)
    labels = torch.randint(0, head.logits(torch.zeros(1, 32)).shape[-1], (7,))
    grads = same(head, torch.randn(7, 32), labels, chunk)
    assert all(float(grad.abs().max()) > 0 for grad in grads.values())


def test_a_label_of_every_new_token_counts() -> None:
    torch.manual_seed(0)
    head = LLMS["new tokens in spare rows"]().head
    grads = same(head, torch.randn(4, 32), torch.tensor([90, 93, 89, 94]), 2)
    assert float(grads["weight"][90:94].abs().max()) == 0  # their logits come from rows of their own


def test_a_frozen_head_gets_no_gradient_and_its_rows_do() -> None:
    head = LLMS["new tokens behind"]().head
    head.linear.weight.requires_grad_(False)
    assert same(head, torch.randn(5, 32), torch.arange(5) + 97, 2).keys() == {"rows", "hidden"}
    head.linear.requires_grad_(False)
    assert same(head, torch.randn(5, 32), torch.arange(5) + 97, 2).keys() == {"hidden"}


def test_without_gradients_there_is_only_the_loss() -> None:
    head = LLMS["llama"]().head
    with torch.no_grad():
        loss = head.loss(torch.ones(3, 32), torch.tensor([1, 2, 3]), 2)
    assert not loss.requires_grad
    assert loss == pytest.approx(head.loss(torch.ones(3, 32), torch.tensor([1, 2, 3]), None).item())


def test_no_positions_give_zero_and_gradients_of_zero() -> None:
    loss, grads = run(LLMS["with a bias"]().head, torch.zeros(0, 32), torch.zeros(0, dtype=torch.long), 4)
    assert loss == 0
    assert grads.keys() == {"weight", "bias", "hidden"}
    assert not any(bool(grad.any()) for grad in grads.values())


@pytest.mark.parametrize("where", ["autocast", "stored"])
def test_bfloat16_makes_its_loss_in_float32(where: str) -> None:
    torch.manual_seed(0)
    head = LLMS["new tokens behind"]().head
    hidden, labels = torch.randn(9, 32), torch.randint(0, 103, (9,))
    exact, wanted = run(head, hidden, labels, None)
    if where == "stored":
        head.linear.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=where == "autocast"):
        hidden = hidden if where == "autocast" else hidden.bfloat16()
        assert head.loss(hidden, labels, 4).dtype == torch.float32
        grads = same(head, hidden, labels, 4, tolerance=2e-2)
        loss, _ = run(head, hidden, labels, 9)
        assert loss == pytest.approx(run(head, hidden, labels, None)[0], rel=1e-6)  # the same rounded logits
    assert loss == pytest.approx(exact, rel=1e-2)
    assert loss != pytest.approx(exact, rel=1e-6)
    for name, grad in wanted.items():
        assert float((grads[name].float() - grad).norm() / grad.norm()) < 2e-2


def test_autocast_still_trains_the_head_elsewhere() -> None:
    head = LLMS["llama"]().head
    with torch.autocast("cpu", torch.bfloat16):
        head.loss(torch.ones(3, 32), torch.tensor([1, 2, 3]), 2)
        head.logits(torch.ones(1, 32)).sum().backward()
    assert float(head.linear.weight.grad.abs().max()) > 0


def test_logits_exist_for_one_chunk_at_a_time() -> None:
    class Widest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dim() == 2 and out.shape[1] == 100:
                self.rows = max(self.rows, out.shape[0])
            return out

    head, hidden = LLMS["llama"]().head, torch.randn(128, 32, requires_grad=True)
    with Widest() as chunked:
        head.loss(hidden, torch.zeros(128, dtype=torch.long), 40).backward()
    with Widest() as whole:
        head.loss(hidden, torch.zeros(128, dtype=torch.long), None).backward()
    assert (chunked.rows, whole.rows) == (40, 128)


def test_a_second_backward_is_refused() -> None:
    loss = LLMS["llama"]().head.loss(torch.randn(3, 32), torch.tensor([1, 2, 3]), 2)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="chunk_rows=null"):
        loss.backward()


def test_a_layer_that_is_not_plain_gets_all_its_logits() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
            return 2 * super().forward(input)

    torch.manual_seed(0)
    same(Head(linear=Doubled(32, 100)), torch.randn(5, 32), torch.arange(5), 2)


def test_hooks_of_the_layer_fire_once_and_the_layer_stays_itself() -> None:
    head, calls = LLMS["llama"]().head, []
    head.linear.register_forward_hook(lambda *args: calls.append(1))
    head.loss(torch.randn(9, 32), torch.arange(9), 2)
    assert len(calls) == 1
    assert head.logits(torch.zeros(1, 32)).shape == (1, 100)


def _rank(rank: int, port: int, sharded: bool, out: Path) -> None:
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.below, self.linear = nn.Linear(32, 32), nn.Linear(32, 100)

        def forward(self, values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return Head(linear=self.linear).loss(self.below(values), labels, 3)

    init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    step = Step()
    torch.manual_seed(1)
    values, labels = torch.randn(2, 7, 32), torch.randint(0, 100, (2, 7))
    if sharded:
        fully_shard(step.linear)
        fully_shard(step)
    module = step if sharded else DistributedDataParallel(step)
    module(values[rank], labels[rank]).backward()
    grads = [p.grad.full_tensor() if sharded else p.grad for p in step.parameters()]
    alone = Step()
    alone(values.flatten(0, 1), labels.flatten()).backward()
    for grad, parameter in zip(grads, alone.parameters(), strict=True):
        torch.testing.assert_close(2 * grad, parameter.grad, atol=1e-5, rtol=1e-5)  # ranks are averaged
    (out / str(rank)).touch()
    destroy_process_group()


@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp2"])
def test_gradients_are_exchanged_between_ranks(sharded: bool, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (port, sharded, tmp_path), nprocs=2)  # type: ignore[attr-defined]
    assert {file.name for file in tmp_path.iterdir()} == {"0", "1"}
