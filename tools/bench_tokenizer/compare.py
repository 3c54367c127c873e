#!/usr/bin/env python3
"""Encodes the same text with Hugging Face `tokenizers` and with Tandem, on one core each.

Checks that the ids are equal, then prints the median MB/s of both, their spread, and the ratio.

  python3 -m venv VENV && VENV/bin/pip install tokenizers
  VENV/bin/python tools/bench_tokenizer/compare.py --bench build/release/bin/bench_tokenizer \
      --model DIR --text FILE

FILE is UTF-8 text, or JSON with the text under "text". It is repeated to --megabytes and cut into
texts of about --text-bytes, as prompts would be.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

# Read by `tokenizers` when it is loaded.
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
import tokenizers  # noqa: E402


def read_text(path):
    content = path.read_text(encoding="utf-8")
    return json.loads(content)["text"] if path.suffix == ".json" else content


def cut(text, megabytes, text_bytes):
    """`text`, repeated, in pieces of at least text_bytes that end behind a line."""
    lines = text.replace("\0", "").splitlines(keepends=True)
    texts, current, size, total = [], [], 0, 0
    while total < megabytes * 1e6:
        for line in lines:
            current.append(line)
            size += len(line.encode())
            if size >= text_bytes:
                texts.append("".join(current))
                total += size
                current, size = [], 0
    return texts


def time_reference(tokenizer, texts, num_repeats):
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    seconds = []
    for _ in range(num_repeats):
        start = time.perf_counter()
        for text in texts:
            tokenizer.encode(text, add_special_tokens=False)
        seconds.append(time.perf_counter() - start)
    return ids, seconds


def time_tandem(bench, model, texts, num_repeats):
    with tempfile.TemporaryDirectory() as folder:
        texts_path, ids_path = pathlib.Path(folder, "texts"), pathlib.Path(folder, "ids")
        texts_path.write_bytes("\0".join(texts).encode())
        output = subprocess.run(
            [bench, "--model", model, "--texts", texts_path, "--ids", ids_path,
             "--repeats", str(num_repeats)],
            check=True, capture_output=True, text=True).stdout.split()
        ids = [[int(word) for word in line.split()] for line in ids_path.read_text().splitlines()]
    return ids, [float(word) for word in output[1:]]


def cpu_name():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown CPU"


def report(name, num_bytes, seconds):
    speeds = [num_bytes / 1e6 / s for s in seconds]
    median = statistics.median(speeds)
    print(f"{name:28} {median:8.2f} MB/s  ({min(speeds):.2f} to {max(speeds):.2f})")
    return median


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=pathlib.Path, required=True, help="bench_tokenizer")
    parser.add_argument("--model", type=pathlib.Path, required=True,
                        help="folder with tokenizer.json")
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--megabytes", type=float, default=4)
    parser.add_argument("--text-bytes", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    # One core for both: the child inherits it.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    texts = cut(read_text(args.text), args.megabytes, args.text_bytes)
    num_bytes = sum(len(text.encode()) for text in texts)
    reference = tokenizers.Tokenizer.from_file(str(args.model / "tokenizer.json"))

    reference_ids, reference_seconds = time_reference(reference, texts, args.repeats)
    tandem_ids, tandem_seconds = time_tandem(args.bench, args.model, texts, args.repeats)
    if tandem_ids != reference_ids:
        raise SystemExit("The ids differ, so there is nothing to compare.")

    num_ids = sum(map(len, tandem_ids))
    print(f"{cpu_name()}, one core; {num_bytes} bytes in {len(texts)} texts, {num_ids} ids, equal")
    theirs = report(f"tokenizers {tokenizers.__version__}", num_bytes, reference_seconds)
    ours = report("tandem", num_bytes, tandem_seconds)
    print(f"{'ratio':28} {ours / theirs:8.2f}")


if __name__ == "__main__":
    main()
