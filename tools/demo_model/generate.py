#!/usr/bin/env python3
"""Writes held-out problems for `tandem eval`, one JSON object per line, tasks in turn.

    generate.py [--per-task N] [--seed S] > held_out.jsonl

Each line: {"task", "messages", "answer"}. One problem in five is asked at the end of a conversation
of two or three turns, whose earlier replies are the right ones. No problem comes twice; a finite
table gives all it has when N is more.
"""
import argparse
import json
import random

import tasks

TRIES = 50  # in a row that give nothing new: the task has no more


def problems(task, count, seed):
    rng = random.Random(f"{seed} {task}")
    even = dict.fromkeys(tasks.TASKS, 1)
    seen, tries = set(), 0
    while len(seen) < count and tries < TRIES:
        turns = 1 if rng.random() < 0.8 else rng.randint(2, 3)
        system, asked = tasks.conversation(rng, even, graded=task, turns=turns)
        last = asked[-1]
        if (last.key, last.question) in seen:
            tries += 1
            continue
        tries = 0
        seen.add((last.key, last.question))
        yield {"task": task, "messages": tasks.messages(system, asked), "answer": last.answer}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--per-task", type=int, default=200)
    parser.add_argument("--seed", type=int, default=2)
    options = parser.parse_args()
    queues = [problems(task, options.per_task, options.seed) for task in tasks.TASKS]
    while queues:
        for queue in list(queues):
            problem = next(queue, None)
            if problem is None:
                queues.remove(queue)
            else:
                print(json.dumps(problem, ensure_ascii=False))


if __name__ == "__main__":
    main()
