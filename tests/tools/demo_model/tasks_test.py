#!/usr/bin/env python3
"""The demo model's problems have right answers, and what is graded is never trained on."""
import io
import json
import pathlib
import random
import re
import sys
import unittest
from contextlib import redirect_stdout
from unittest import mock

FOLDER = pathlib.Path(__file__).resolve().parents[3] / "tools" / "demo_model"
sys.path.insert(0, str(FOLDER))
import generate  # noqa: E402
import tasks  # noqa: E402
import words  # noqa: E402

EVEN = dict.fromkeys(tasks.TASKS, 1)


def held_out_lines():
    return (FOLDER / "held_out.jsonl").read_text(encoding="utf-8").splitlines()


def numbers(text):
    return [int(n) for n in re.findall(r"\d+", text)]


def listed(question):
    """The items behind the colon."""
    return question.split(": ", 1)[1].replace(",", "").split()


def expected(task, question):
    """The answer, worked out from the words of the question alone; None where it is not there."""
    q = question.lower()
    if task in ("add", "multiply"):
        a, b = numbers(q)
        return f"{a} + {b} = {a + b}" if task == "add" else f"{a} x {b} = {a * b}"
    if task == "subtract":
        a, b = reversed(numbers(q)) if "subtract" in q else numbers(q)
        return f"{a} - {b} = {a - b}"
    if task == "sort":
        down = "descending" in q or "high to low" in q
        return " ".join(map(str, sorted(numbers(q), reverse=down)))
    if task == "reverse":
        return " ".join(reversed(listed(question)))
    if task == "compare":
        a, b = numbers(q)
        if "which" in q:
            return str(min(a, b) if "smaller" in q else max(a, b))
        return "Yes" if (a < b if "less" in q else a > b) else "No"
    if task in ("spell", "backwards"):
        word = re.search(r"spell (?:the word )?(\w+)", q)[1]
        return " ".join(word if task == "spell" else word[::-1])
    if task == "count":
        letter, word = re.search(r"(?:letter |does |many )(\w)\b.* in (\w+)", q).groups()
        return str(word.count(letter))
    if task == "pattern":
        items = listed(question)
        if all(item.isdigit() for item in items):
            n = [int(item) for item in items]
            steps = {b - a for a, b in zip(n, n[1:])}
            if len(steps) == 1:
                return " ".join(str(n[-1] + steps.copy().pop() * i) for i in (1, 2, 3))
            if all(b == 2 * a for a, b in zip(n, n[1:])):
                return " ".join(str(n[-1] * 2**i) for i in (1, 2, 3))
        for period in (2, 3):
            if all(a == b for a, b in zip(items, items[period:])) and items[0] != items[1]:
                return " ".join(items[(len(items) + i) % period] for i in range(3))
        step = ord(items[1]) - ord(items[0])
        return " ".join(chr(ord(items[-1]) + step * i) for i in (1, 2, 3))
    if task == "calendar":
        names = words.DAYS if "day " in q else words.MONTHS
        (start,) = [i for i, name in enumerate(names) if re.search(rf"\b{name}\b", question, re.I)]
        distance = (numbers(q) or [1])[0] * (1 if "after" in q else -1)
        return names[(start + distance) % len(names)]
    return None


def footprint(task, question, answer):
    """What makes a graded problem this one, found in the text; None if another may be like it."""
    if task in ("add", "subtract"):
        return task, tuple(sorted(numbers(question)))
    if task == "sort":
        return task, tuple(sorted(numbers(question)))
    if task == "compare":
        return task, tuple(sorted(numbers(question)))
    if task == "reverse":
        items = listed(question)
        return task, tuple(min(items, items[::-1]))
    if task == "spell":
        return "word", answer.replace(" ", "")
    if task == "backwards":
        return "word", answer.replace(" ", "")[::-1]
    if task == "count":
        return "word", re.search(r" in (\w+)", question)[1]
    if task == "calendar" and numbers(question):
        return task, question.lower().split(" is ")[-1].split(" comes ")[-1].rstrip("?.")
    return None


class TasksTest(unittest.TestCase):
    def test_every_answer_follows_from_the_question(self):
        rng = random.Random(7)
        for task in tasks.TASKS:
            for _ in range(400):
                problem = tasks.draw(rng, task, False)
                answer = expected(task, problem.question)
                if answer is not None:
                    self.assertEqual(problem.answer, answer, problem.question)

    def test_a_looked_up_value_is_in_the_list_once(self):
        rng = random.Random(8)
        for _ in range(400):
            problem = tasks.draw(rng, "look-up", False)
            rows = re.split(r"[.?] ", problem.question, maxsplit=1)[0].lower().split(", ")
            rows = [row.removeprefix("please ") for row in rows]
            self.assertEqual(rows.count(problem.answer.lower()), 1, problem.question)
            self.assertIn(problem.answer.split(" is ")[0].split(" has ")[0].lower(),
                          problem.question.rsplit(". ", 1)[-1].lower())

    def test_the_working_ends_in_the_answer(self):
        rng = random.Random(9)
        for task in ("count", "calendar"):
            for _ in range(200):
                problem = tasks.draw(rng, task, False)
                if problem.working:
                    self.assertTrue(problem.working.endswith(problem.answer), problem.reply)

    def test_nothing_graded_is_trained_on(self):
        graded = set()
        for line in map(json.loads, held_out_lines()):
            graded.add(footprint(line["task"], line["messages"][-1]["content"], line["answer"]))
        graded.discard(None)
        self.assertGreater(len(graded), 1000)
        rng = random.Random(1)
        for _ in range(20000):
            for problem in tasks.conversation(rng, EVEN)[1]:
                if " " in problem.question and problem.task not in ("look-up", "about"):
                    mark = footprint(problem.task, problem.question, problem.answer)
                    self.assertNotIn(mark, graded, problem.question)

    def test_the_earlier_turns_of_graded_problems_may_be_trained_on(self):
        rng = random.Random(2)
        for _ in range(200):
            _, problems = tasks.conversation(rng, EVEN, graded="add", turns=3)
            self.assertEqual([p.graded for p in problems], [False, False, True])

    def test_held_out_problems_come_from_their_seed(self):
        out = io.StringIO()
        with redirect_stdout(out), mock.patch("sys.argv", ["generate.py"]):
            generate.main()
        self.assertEqual(out.getvalue().splitlines(), held_out_lines())

    def test_only_the_last_line_is_graded(self):
        self.assertTrue(tasks.right(" b0 a1\n1", "1"))
        self.assertTrue(tasks.right("\n 1 \n", "1"))
        self.assertFalse(tasks.right("1\nb0 a1", "1"))
        self.assertFalse(tasks.right("", "1"))


if __name__ == "__main__":
    unittest.main()
