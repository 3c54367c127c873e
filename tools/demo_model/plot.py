#!/usr/bin/env python3
"""Draws the training's progress and the experts' load.

    plot.py WORK_DIR OUT_DIR

Reads WORK_DIR/log.jsonl and state.pt (see train.py). Writes OUT_DIR/loss.svg, accuracy.svg and
experts.svg: the share of the routed rows that each expert of each layer gets on held-out
conversations, where 1 is an even share. Prints the least and the most per layer.
"""
import argparse
import json
import pathlib
import random

import matplotlib
import torch

import data
import train
from model import CONFIG, DemoModel

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "demo"
from matplotlib import pyplot  # noqa: E402


def save(figure, path):
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def draw_loss(lines, path):
    figure, axes = pyplot.subplots(figsize=(7, 3))
    points = [line for line in lines if "loss" in line]
    axes.semilogy([p["tokens"] / 1e6 for p in points], [p["loss"] for p in points])
    axes.set(xlabel="million tokens", ylabel="loss per token of a reply")
    axes.grid(alpha=0.3)
    save(figure, path)


def draw_accuracy(lines, path):
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    points = [line for line in lines if "accuracy" in line]
    for i, task in enumerate(sorted(points[-1]["accuracy"])):
        axes.plot([p["tokens"] / 1e6 for p in points], [100 * p["accuracy"][task] for p in points],
                  label=task, color=pyplot.cm.tab20(i))
    axes.set(xlabel="million tokens", ylabel="held-out problems right, %")
    axes.legend(fontsize=7, loc="lower right")
    axes.grid(alpha=0.3)
    save(figure, path)


@torch.no_grad()
def expert_load(state):
    model = DemoModel(CONFIG)
    model.load_state_dict(state["model"])
    encoder = data.Encoder(pathlib.Path(__file__).resolve().parent / "checkpoint/tokenizer.json")
    batch = train.graded_batch(random.Random(3), encoder, 40)
    _, _, load = batch.run(model)
    return load * load.shape[1]


def draw_load(load, path):
    figure, rows = pyplot.subplots(len(load), 1, figsize=(7, 6), sharex=True, sharey=True)
    for i, (axes, shares) in enumerate(zip(rows, load)):
        axes.bar(range(len(shares)), shares.sort(descending=True).values)
        axes.axhline(1, color="gray", linewidth=0.5)
        axes.set_ylabel(f"layer {i + CONFIG['first_k_dense_replace']}")
    rows[-1].set_xlabel("experts by their load; 1 is an even share")
    save(figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in (options.work / "log.jsonl").read_text().splitlines()]
    draw_loss(lines, options.out / "loss.svg")
    draw_accuracy(lines, options.out / "accuracy.svg")
    load = expert_load(torch.load(options.work / "state.pt", weights_only=False))
    draw_load(load, options.out / "experts.svg")
    for i, shares in enumerate(load):
        print(f"layer {i + CONFIG['first_k_dense_replace']}: least {shares.min():.2f}, "
              f"most {shares.max():.2f} of an even share")


if __name__ == "__main__":
    main()
