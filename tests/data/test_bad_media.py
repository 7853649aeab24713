"""Media that nobody can read: every injected fault is reported, nothing else is, and above the cap the run stops."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from PIL import Image

from mmexp.contracts import Medium, Region, Sample, Text, Turn
from mmexp.data import Collator, DropCounts, MultimodalDataModule, TrainingData, preflight, require_trainable
from mmexp.data.collate import EMPTY
from mmexp.encoder import ImageTransform
from mmexp.errors import DataError
from mmexp.llm import TinyLlmConfig
from mmexp.prompt import ChatTemplate, Processor, SegmentTokenizer
from tests.broken_pictures import BROKEN, write_broken
from tests.data.samples import Samples, make_sample

CLEAN = 2000
MODES = ("RGB", "L", "RGBA", "P", "1", "CMYK", "LA", "I;16")
KINDS = {"RGB": "JPEG", "CMYK": "TIFF"}
BEHIND_THE_HEADER = {"cut.png", "cut.jpg", "cut.gif", "cut.bmp", "cut.tif", "flipped.png", "float.tif"}
"""Damage that only decoding finds; a WebP is read to its end to find its size."""


def row(name: str, source) -> Sample:
    user = Turn(role="user", parts=(Medium(source=source), Text(text="q")))
    return Sample(id=name, dataset="mix", turns=(user, Turn(role="assistant", parts=(Text(text="yes"),))))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Samples:
    """2,000 rows on sound pictures of all kinds, with one of each fault spread among them."""
    folder = write_broken(tmp_path_factory.mktemp("mix"))
    for mode in MODES:
        Image.new(mode, (6, 4)).save(folder / f"good_{MODES.index(mode)}.img", KINDS.get(mode, "PNG"))
    rows = Samples(row(f"good{n}", str(folder / f"good_{n % len(MODES)}.img")) for n in range(CLEAN))
    for number, (name, _) in enumerate(BROKEN):
        rows.insert(number * 80 + 3, row(f"bad {name}", str(folder / name)))
    rows.append(row("bad bytes", b"\xff\xd8\xff\xe0 cut"))
    return rows


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(
        template=ChatTemplate(name="t", user="{turn}|"),
        tokenizer=SegmentTokenizer(TinyLlmConfig().load_tokenizer()),
        slot_lengths={"image": 4},
        transforms={"image": ImageTransform(size_px=4)},
        max_length_tokens=60,
    )


INJECTED = {f"bad {name}" for name, _ in BROKEN} | {"bad bytes"}


def one_pass(data, processor, counts: DropCounts) -> tuple[list[str], list[dict[str, str]]]:
    """Ids that were kept and the report, in batches of 8."""
    items, collate, kept, report = TrainingData(data, processor), Collator(pad_id=0), [], []
    for start in range(0, len(data), 8):
        batch = collate([items[index] for index in range(start, min(start + 8, len(data)))])
        kept += [name for name in batch.ids if name != EMPTY]
        report += batch.bad_media
        counts.update(batch)
    return kept, report


def test_report_equals_what_was_injected_and_every_replay_decides_the_same(data, processor):
    counts = DropCounts(bad_media_cap=0.05, num_samples=len(data))
    kept, report = one_pass(data, processor, counts)
    assert {entry["id"] for entry in report} == INJECTED
    assert len(report) == len(INJECTED) == counts.dropped["bad_media"]
    assert kept == [sample.id for sample in data if sample.id not in INJECTED]
    assert len(kept) == CLEAN
    for entry in report:
        assert entry["dataset"] == "mix"
        assert entry["reason"]
        assert entry["file"].endswith(entry["id"].removeprefix("bad ")) or entry["id"] == "bad bytes"
    again = one_pass(data, processor, DropCounts(bad_media_cap=0.05, num_samples=len(data)))
    assert again == (kept, report)


def test_headers_alone_find_all_but_damage_behind_them(data, processor):
    report = preflight(data, processor, max_rows=50)
    assert {entry["id"] for entry in report.bad_media} == INJECTED - {f"bad {name}" for name in BEHIND_THE_HEADER}
    assert not report.errors
    require_trainable(report, bad_media_cap=0.05)
    with pytest.raises(DataError, match=f"{len(report.bad_media)} of {len(data)} samples") as error:
        require_trainable(report)
    assert "at most 0.001" in error.value.expected
    assert "zero.png: the image file is empty" in str(error.value)


def test_more_than_the_cap_stops_the_run_with_names(data, processor):
    """0.1 % of 2,026 rows are two; the third fault stops."""
    counts = DropCounts(num_samples=len(data))
    with pytest.raises(DataError, match=r"3 of 20\d\d samples") as error:
        one_pass(data, processor, counts)
    assert "'bad cut.png'" in str(error.value)
    assert "bad_media_cap" in error.value.fix


def test_two_bad_files_at_the_start_of_a_large_dataset_do_not_stop_it(data, processor):
    counts, first = DropCounts(num_samples=100_000), Samples(data[:100])
    one_pass(first, processor, counts)
    assert counts.dropped["bad_media"] == 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_bring_the_report(data, processor, num_workers):
    module = MultimodalDataModule(
        dataset=Samples(data[:200]),
        processor=processor,
        collator=Collator(pad_id=0),
        micro_batch_size=20,
        num_micro_batches=10,
        seed=1,
        num_workers=num_workers,
        bad_media_cap=0.5,
    )
    report = [entry["id"] for batch in module.train_dataloader() for entry in batch.bad_media]
    assert sorted(report) == sorted(sample.id for sample in data[:200] if sample.id in INJECTED)


def test_each_of_two_ranks_judges_its_half_of_the_rows(data, processor):
    module = MultimodalDataModule(
        dataset=Samples(data[:200]),
        processor=processor,
        collator=Collator(pad_id=0),
        micro_batch_size=20,
        num_micro_batches=5,
        seed=1,
        num_workers=2,
        bad_media_cap=0.02,
    )
    num_bad = sum(sample.id in INJECTED for sample in data[:200])
    assert num_bad == 3, "0.02 of 200 rows would be four"
    module.trainer = SimpleNamespace(global_rank=0, world_size=2)  # pyright: ignore[reportAttributeAccessIssue]
    loader = module.train_dataloader()
    assert module.drop_counts.num_samples == 100
    broken = Collator(pad_id=0)([TrainingData(Samples(data), processor)[n] for n in bad_places(data, 3)])
    with pytest.raises(DataError, match="3 of 100 samples"):
        module.advance(broken)
    seen = sum(len(batch.ids) + sum(map(len, batch.dropped.values())) for batch in loader)
    assert seen >= 100, "and prepared batches that were not trained do not count"
    assert module.drop_counts.num_seen == 3


def bad_places(data, count: int) -> list[int]:
    return [number for number, sample in enumerate(data) if sample.id in INJECTED][:count]


def test_box_outside_the_crop_is_a_counted_rule(processor):
    picture = Medium(source=Image.new("RGB", (40, 20)))

    def asked(name, box):
        user = Turn(role="user", parts=(picture, Text(text="q"), Region(boxes=(box,))))
        return Sample(id=name, turns=(user, Turn(role="assistant", parts=(Text(text="yes"),))))

    rows = Samples([asked("in", (0.4, 0.2, 0.6, 0.8)), asked("out", (0.0, 0.2, 0.2, 0.8)), make_sample("text")])
    batch = Collator(pad_id=0)([TrainingData(rows, processor)[index] for index in range(3)])
    assert batch.ids == ("in", "text")
    assert batch.dropped == {"box_outside": ("out",)}
    report = preflight(rows, processor)
    assert report.outside == ["out"]
    with pytest.raises(DataError, match="box_outside") as error:
        require_trainable(report)
    assert "image_fit=pad" in error.value.fix
