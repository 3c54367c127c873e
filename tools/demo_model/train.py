#!/usr/bin/env python3
"""Trains the demo model on one machine's CPU cores; goes on from where the last run stopped.

    train.py --work DIR [--steps N] [--tokens N] [--until-step N]

DIR keeps state.pt (weights, optimizer, generators; written every 250 steps and replaced at once)
and log.jsonl: one line per 25 steps with the loss, one per grading with the accuracy of each task
on held-out problems. Ctrl-C stops after the step. export.py makes the checkpoint from state.pt.
The learning rate falls to zero over the last 60% of --steps, and to 0.3 of that from step 2,076.
"""
import argparse
import json
import os
import pathlib
import random
import signal
import time

import torch
from torch.nn import functional

import data
import tasks
from model import CONFIG, DemoModel
from optimizer import Optimizer

HERE = pathlib.Path(__file__).resolve().parent
SEED = 1
WARMUP_STEPS = 100
COOL_DOWN = 0.6
FINE_FROM, FINE = 2076, 0.3  # the full rate's noise hides what is learned
FOCUS_FROM = 3386  # the tasks that are still wrong get twice the weight
BALANCE = 0.05  # weight of the balance loss
GRADE_EVERY = 250
GRADED_PER_TASK = 30


def rate_share(step, steps):
    share = min((step + 1) / WARMUP_STEPS, 1, (steps - step) / (COOL_DOWN * steps))
    return share if step < FINE_FROM else share * FINE


class Curriculum:
    """Draws a task the more often, the more of its held-out problems are answered wrong."""

    def __init__(self):
        self.wrong = dict.fromkeys(tasks.TASKS, 1.0)

    def update(self, accuracy):
        for task, right in accuracy.items():
            self.wrong[task] += 0.5 * (1 - right - self.wrong[task])

    def weights(self, step):
        base, slope = (0.2, 2) if step < FOCUS_FROM else (0.1, 4)
        weights = {task: base + slope * min(wrong, 0.4) for task, wrong in self.wrong.items()}
        weights["about"] *= 0.4
        return weights


@torch.no_grad()
def grade(model, batch):
    """Accuracy per task of a batch of graded conversations, by the last problem of each.

    A reply counts if every token of it is the most likely one after those before it, which is when
    greedy decoding gives the reply.
    """
    logits, _, _ = batch.run(model)
    wrong = torch.zeros(len(batch.problems))
    wrong.index_add_(0, batch.owner, (logits.argmax(-1) != batch.targets).float())
    tally = {}
    for problem, misses in zip(batch.problems, wrong.tolist()):
        if problem.graded:
            right, count = tally.get(problem.task, (0, 0))
            tally[problem.task] = (right + (misses == 0), count + 1)
    return {task: right / count for task, (right, count) in sorted(tally.items())}


def graded_batch(rng, encoder, per_task):
    """Conversations of one to three turns that end in a held-out problem."""
    even = dict.fromkeys(tasks.TASKS, 1)
    conversations = []
    for task in tasks.TASKS:
        for _ in range(per_task):
            turns = 1 if rng.random() < 0.8 else rng.randint(2, 3)
            conversations.append(tasks.conversation(rng, even, graded=task, turns=turns))
    return data.Batch(encoder, conversations)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--until-step", type=int, help="stop here; go on in another run")
    parser.add_argument("--tokens", type=int, default=6144, help="of a step's batch")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    state_path = options.work / "state.pt"

    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    encoder = data.Encoder(HERE / "checkpoint" / "tokenizer.json")
    model = DemoModel(CONFIG)
    optimizer = Optimizer(model)
    curriculum = Curriculum()
    step, seconds, tokens = 0, 0.0, 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=False)
        model.load_state_dict(state["model"])
        optimizer.load(state["optimizer"])
        rng.setstate(state["rng"])
        curriculum.wrong = state["wrong"]
        step, seconds, tokens = state["step"], state["seconds"], state["tokens"]

    def save():
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state(),
                    "rng": rng.getstate(), "wrong": curriculum.wrong, "step": step,
                    "seconds": seconds, "tokens": tokens}, state_path.with_suffix(".new"))
        os.replace(state_path.with_suffix(".new"), state_path)

    stop = []
    signal.signal(signal.SIGINT, lambda *_: stop.append(True))
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    log = open(options.work / "log.jsonl", "a", buffering=1)
    until = min(options.steps, options.until_step or options.steps)
    losses, loads = [], []
    while step < until and not stop:
        started = time.perf_counter()
        batch = data.draw_batch(rng, encoder, curriculum.weights(step), options.tokens)
        logits, balance, load = batch.run(model)
        loss = functional.cross_entropy(logits, batch.targets)
        (loss + BALANCE * balance).backward()
        optimizer.step(rate_share(step, options.steps))
        model.zero_grad(set_to_none=True)
        step += 1
        seconds += time.perf_counter() - started
        tokens += int(batch.real.sum())
        losses.append(loss.item())
        loads.append(load)
        if step % 25 == 0:
            load = torch.stack(loads).mean(0)
            log.write(json.dumps({
                "step": step, "tokens": tokens, "seconds": round(seconds),
                "loss": round(sum(losses) / len(losses), 5), "balance": round(balance.item(), 4),
                "least_load": round(load.min().item() * load.shape[1], 3),
                "most_load": round(load.max().item() * load.shape[1], 3)}) + "\n")
            losses, loads = [], []
        if step % GRADE_EVERY == 0 or step == until:
            batch = graded_batch(random.Random(SEED + step), encoder, GRADED_PER_TASK)
            accuracy = grade(model, batch)
            curriculum.update(accuracy)
            log.write(json.dumps({"step": step, "tokens": tokens, "seconds": round(seconds),
                                  "accuracy": {k: round(v, 3) for k, v in accuracy.items()}}) + "\n")
            save()
    save()


if __name__ == "__main__":
    main()
