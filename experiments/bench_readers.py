"""What opening a large annotation file costs, and what reading tars costs beside reading files.

python experiments/bench_readers.py                    # 665,000 rows (about 1 GB), 2,000 pictures
python experiments/bench_readers.py --rows 20000 --pictures 300 --folder /tmp/bench
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

from mmexp.data import LlavaJsonConfig, TarsConfig

WORDS = """
a an the of and with in on near behind is are there two people man woman child red blue small large wooden bench street
kitchen table plate bus train dog cat giraffe grass sky holding standing sitting walking riding looks appears scene
image shows suggests overall likely might be because which what color how many where does person wearing
""".split()  # noqa: SIM905  (sixty strings in a list are no easier to read)
MEAN_EXCHANGES = 5.1
"""665,298 rows of LLaVA-1.5's mixture hold about 3.4 million exchanges."""
NUM_WORKERS = 4
READS_PER_WORKER = 2000


def make_rows(path: Path, count: int, seed: int = 0) -> None:
    """A LLaVA file with short and long answers, a tenth without a picture; indented like the published ones."""
    rng = random.Random(seed)
    short = [" ".join(rng.choices(WORDS, k=rng.randint(1, 20))) for _ in range(2000)]
    long = [" ".join(rng.choices(WORDS, k=rng.randint(20, 70))) for _ in range(2000)]
    with open(path, "w", encoding="utf-8") as out:
        out.write("[\n")
        for number in range(count):
            turns = []
            is_text = number % 10 == 9
            for place in range(max(1, round(rng.expovariate(1 / MEAN_EXCHANGES)))):
                mark = "<image>\n" if place == 0 and not is_text else ""
                turns.append({"from": "human", "value": mark + rng.choice(short)})
                turns.append({"from": "gpt", "value": rng.choice(long if rng.random() < 0.5 else short)})
            row = {"id": f"{number:012d}", "image": f"coco/train2017/{number:012d}.jpg", "conversations": turns}
            if is_text:
                del row["image"]
            out.write((",\n" if number else "") + json.dumps(row, indent=2))
        out.write("\n]\n")


def memory() -> dict[str, float]:
    """Resident and private memory of this process, and its peak, in MB."""
    fields = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        fields[name] = int(value.split()[0]) / 1024
    private = fields["Private_Clean"] + fields["Private_Dirty"]
    return {"rss": fields["Rss"], "private": private, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def open_file(path: str, results) -> None:
    """Opens the file and reads it with forked and spawned workers; run in a process of its own."""
    before = memory()
    start, cpu = time.perf_counter(), time.process_time()
    data = LlavaJsonConfig(path=path).build()
    found = {"rows": len(data), "s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu, **memory()}
    found["before"] = before["rss"]
    start = time.perf_counter()
    found["hints"] = int((data.hints() < 0).sum())
    for index in range(0, len(data), max(1, len(data) // 5000)):
        data[index]
    found["us_per_sample"] = (time.perf_counter() - start) / min(len(data), 5000) * 1e6
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        with context.Pool(NUM_WORKERS) as pool:
            found[method] = pool.starmap(read_some, [(data, seed) for seed in range(NUM_WORKERS)], chunksize=1)
    results.put(found)


def read_some(data, seed: int) -> dict[str, float]:
    """One worker: reads rows at random places and says what memory it holds then."""
    rng = random.Random(seed)
    for _ in range(READS_PER_WORKER):
        data[rng.randrange(len(data))]
    return memory()


def bench_json(folder: Path, rows: int) -> None:
    path = folder / f"rows_{rows}.json"
    if not path.exists():
        make_rows(path, rows)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=open_file, args=(str(path), results))
    process.start()
    found = results.get(timeout=600)
    process.join()
    print(f"{found['rows']:,} rows, {path.stat().st_size / 1e6:,.0f} MB")
    print("| what | value |\n|---|---|")
    print(f"| open, check, hints | {found['s']:.1f} s ({found['cpu_s']:.1f} s of CPU) |")
    print(f"| peak resident memory | {found['peak']:,.0f} MB ({found['before']:,.0f} MB before) |")
    print(f"| a sample at a random place | {found['us_per_sample']:.0f} us |")
    for method in ("fork", "spawn"):
        for kind in ("rss", "private"):
            values = [worker[kind] for worker in found[method]]
            print(f"| {NUM_WORKERS} workers by {method}, {kind} memory each | {max(values):,.0f} MB at most |")


def make_pictures(folder: Path, count: int, source: Path | None) -> list[Path]:
    """Pairs of picture and caption: copies of the JPEGs in `source`, or random bytes of their usual sizes."""
    (folder / "files").mkdir(exist_ok=True)
    given = [file.read_bytes() for file in sorted(source.glob("*.jpg"))] if source else []
    rng, made = random.Random(1), []
    for number in range(count):
        content = given[number % len(given)] if given else rng.randbytes(rng.randint(20_000, 80_000))
        made.append(folder / "files" / f"{number:06d}.jpg")
        made[-1].write_bytes(content)
        made[-1].with_suffix(".txt").write_text(" ".join(rng.choices(WORDS, k=12)))
    return made


def bench_tar(folder: Path, pictures: list[Path], repeats: int) -> None:
    tar_path = folder / "shard.tar"
    with tarfile.open(tar_path, "w") as tar:
        for picture in pictures:
            for file in (picture, picture.with_suffix(".txt")):
                tar.add(file, arcname=file.name)
    start = time.perf_counter()
    data = TarsConfig(path=str(tar_path)).build()
    first = time.perf_counter() - start
    start = time.perf_counter()
    TarsConfig(path=str(tar_path)).build()
    again = time.perf_counter() - start
    files, rows = [], list(range(len(data)))
    shuffled = random.Random(0).sample(rows, len(rows))
    times: dict[str, list[float]] = {"files": [], "tar in order": [], "tar shuffled": []}
    for _ in range(repeats):
        start = time.perf_counter()
        files = [(picture.read_bytes(), picture.with_suffix(".txt").read_text()) for picture in pictures]
        times["files"].append(time.perf_counter() - start)
        for name, order in (("tar in order", rows), ("tar shuffled", shuffled)):
            start = time.perf_counter()
            samples = [data[index] for index in order]
            times[name].append(time.perf_counter() - start)
            total = sum(len(sample.turns[0].media[0].source) for sample in samples)
            assert total == sum(len(content) for content, _ in files)
    print(
        f"\n{len(pictures):,} pictures, {tar_path.stat().st_size / 1e6:,.0f} MB; "
        f"index made in {first:.2f} s, read again in {again:.3f} s"
    )
    print("| reading | us a sample (median) | beside files |\n|---|---|---|")
    base = statistics.median(times["files"])
    for name, values in times.items():
        middle = statistics.median(values)
        print(f"| {name} | {middle / len(pictures) * 1e6:.0f} | {middle / base:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=665_000)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--source", type=Path, help="folder of JPEGs to copy; random bytes without it")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files are made; a temporary folder without it")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        os.makedirs(folder, exist_ok=True)
        bench_json(folder, given.rows)
        bench_tar(folder, make_pictures(folder, given.pictures, given.source), given.repeats)


if __name__ == "__main__":
    main()
