"""The data module under a real Trainer: resume, worker processes, refusals."""

from __future__ import annotations

import contextlib
import re

import pytest
import torch
from lightning import LightningModule, Trainer

from mmexp.contracts import Sample, Text, Turn
from mmexp.data import Collator, MultimodalDataModule, OrderSettings, RunOrder, build_order
from mmexp.data.mixture import Mixture, Part
from mmexp.errors import CheckpointError, DataError
from tests.data.samples import Samples, make_processor, make_sample, mixed


def make_module(samples=None, **changes) -> MultimodalDataModule:
    settings = {"micro_batch_size": 3, "num_micro_batches": 12, "seed": 5, "num_workers": 0, **changes}
    return MultimodalDataModule(
        dataset=samples or mixed(11), processor=make_processor(), collator=Collator(pad_id=0), **settings
    )


class Recorder(LightningModule):
    """Writes down the ids it was given, and can stop like a killed run."""

    def __init__(self, checkpoint_at: int | None = None, path=None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen, self.checkpoint_at, self.path = [], checkpoint_at, path

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.ids)
        self.trainer.datamodule.advance(batch)
        return (self.weight * batch.num_supervised).sum()

    def on_train_batch_end(self, *_):
        if self.trainer.datamodule.position == self.checkpoint_at:
            self.trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(recorder, data, ckpt=None):
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        trainer.fit(recorder, datamodule=data, ckpt_path=ckpt, weights_only=True if ckpt else None)
    return recorder.seen


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stop", [4, 11])
def test_killed_and_resumed_run_sees_the_same_samples(tmp_path, stop, num_workers):
    whole = run(Recorder(), make_module())
    assert len(whole) == 12
    path = str(tmp_path / "x.ckpt")
    first = run(Recorder(stop, path), make_module(num_workers=num_workers))
    data = make_module(num_workers=2 - num_workers)
    second = run(Recorder(), data, path)
    assert first[:stop] + second == whole
    assert data.position == 12
    assert data.drop_counts.num_seen == 36


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"samples": mixed(12)}, "number of rows is 12, the checkpoint has 11"),
        ({"samples": Samples([*mixed(10), make_sample("other")])}, "data hash"),
        ({"micro_batch_size": 2}, "stage.micro_batch_size is 2"),
        ({"seed": 6}, "seed is 6"),
    ],
)
def test_resume_with_other_data_is_refused_by_name(changes, name):
    with pytest.raises(CheckpointError, match=name):
        make_module(**changes).load_state_dict(make_module().state_dict())


def order_of(data, **settings) -> RunOrder:
    return build_order(data, make_processor(), OrderSettings(seed=5, micro_batch_size=3, **settings))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data: order_of(data, order="length"), "processor.order is length, the checkpoint has shuffled"),
        (lambda data: order_of(data, row="packed"), "processor.row is packed of 60 tokens"),
        (lambda data: order_of(data, row="packed", packing_window=7), "windows of 7 samples"),
    ],
)
def test_resume_in_another_order_is_refused_both_ways(make, message):
    usual, other = make_module(), make_module(order=make(mixed(11)))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        other.load_state_dict(usual.state_dict())
    with pytest.raises(CheckpointError, match=r"processor\."):
        usual.load_state_dict(other.state_dict())
    again = make_module(order=make(mixed(11)))
    again.load_state_dict(other.state_dict())


def test_a_checkpoint_of_an_earlier_version_resumes():
    state = make_module().state_dict()
    for name in ("num_positions", "num_tokens", "dropped_by_dataset"):
        del state[name]
    assert "processor.order" not in state["identity"]
    make_module().load_state_dict(state)


def test_another_mixture_is_refused_by_name():
    def module(weight):
        data = Mixture([Part("a", mixed(5), weight), Part("b", mixed(6))])
        return make_module(data, order=order_of(data))

    with pytest.raises(CheckpointError, match=r"data\.parts is a: 5 rows .*weight 2; b: 6 rows"):
        module(2.0).load_state_dict(module(1.0).state_dict())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_padding_waste_goes_on_after_a_resume(num_workers):
    data = make_module(num_workers=num_workers)
    data.collator = Collator(pad_id=0, row="padded")
    batches = list(data.train_dataloader())
    for batch in batches:
        data.advance(batch)
    positions = sum(batch.input_ids.numel() for batch in batches)
    assert data.padding_waste == pytest.approx(1 - sum(batch.num_tokens for batch in batches) / positions)
    assert 0 < data.padding_waste < 1
    again = make_module()
    assert again.padding_waste == 0
    again.load_state_dict(data.state_dict())
    assert again.padding_waste == data.padding_waste


def test_longer_run_may_resume():
    data = make_module(num_micro_batches=20)
    data.load_state_dict({**make_module().state_dict(), "position": 12})
    assert len(list(data.train_dataloader())) == 8


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_sample_gives_its_own_message_also_from_a_worker(num_workers):
    bad = Sample(id="bad", dataset="demo", turns=(Turn(role="user", parts=(Text(text="q"),)),))
    data = make_module(Samples([bad]), num_workers=num_workers)
    with pytest.raises(DataError) as error:
        list(data.train_dataloader())
    assert error.value.found == "a conversation without an answer"
    assert "Traceback" not in str(error.value)


def test_loader_leaves_the_global_rng_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(make_module(num_micro_batches=2).train_dataloader())
    assert torch.equal(before, torch.get_rng_state())


def test_too_long_samples_are_counted_in_the_state():
    data = make_module(Samples([*mixed(5), make_sample("long", "x" * 99)]))
    for batch in data.train_dataloader():
        data.advance(batch)
    assert data.state_dict()["dropped"] == {"too_long": 6}
    assert data.state_dict()["num_seen"] == 36
    assert data.state_dict()["dropped_by_dataset"] == {"demo": {"too_long": 6}}
