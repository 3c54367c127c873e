"""The demo model's problems: made without end from a seed, each with one right answer.

A problem is a question and its reply. The reply's last line is the answer and all that is graded;
some tasks write a short working on the line before it. Greedy decoding has one right continuation
at every token, because every reply is a function of the conversation.

Held out: a problem's key (what makes it this problem, whatever the phrasing) is hashed, and one key
in 20 is never trained on; graded problems have only such keys. The key of a sum is the unordered
pair, of a list to sort the multiset, of every task about a word the word, so that no near copy is
in the training data either. Two tasks are finite tables, trained and graded whole: products to
20 x 20, and questions about the model itself.
"""
import dataclasses
import hashlib
import random

import words

HELD_OUT_ONE_IN = 20


@dataclasses.dataclass
class Problem:
    task: str
    key: str  # "" : of a finite table, trained and graded
    question: str
    answer: str
    working: str = ""
    graded: bool = False

    @property
    def reply(self):
        return f"{self.working}\n{self.answer}" if self.working else self.answer


def held_out(problem):
    """Whether the problem is kept for grading."""
    digest = hashlib.sha256(problem.key.encode()).digest()
    return problem.key != "" and digest[0] * 256 + digest[1] < 65536 // HELD_OUT_ONE_IN


def last_line(reply):
    """What is graded of a reply."""
    return reply.strip().rsplit("\n", 1)[-1].strip()


def right(reply, answer):
    return last_line(reply) == answer


def number(rng, digits=3):
    """A number of up to `digits` digits; each length is drawn more often than its share."""
    if rng.random() < 0.6:
        return rng.randrange(10**digits)
    return rng.randrange(10 ** rng.randint(1, digits))


def word(rng):
    return rng.choice(words.COMMON) if rng.random() < 0.35 else words.invented(rng)


def joined(rng, items):
    """A list as people write it."""
    return rng.choice([" ", " ", ", "]).join(str(item) for item in items)


def add(rng):
    a, b = number(rng), number(rng)
    question = rng.choice(["What is {a} + {b}?", "What is {a} + {b}?", "{a} + {b}", "{a} + {b} =",
                           "Add {a} and {b}.", "What is {a} plus {b}?", "Calculate {a} + {b}."])
    return Problem("add", f"add {min(a, b)} {max(a, b)}", question.format(a=a, b=b),
                   f"{a} + {b} = {a + b}")


def subtract(rng):
    a, b = number(rng), number(rng)
    if a < b and rng.random() < 0.8:
        a, b = b, a
    question = rng.choice(["What is {a} - {b}?", "What is {a} - {b}?", "{a} - {b}", "{a} - {b} =",
                           "Subtract {b} from {a}.", "What is {a} minus {b}?",
                           "Calculate {a} - {b}."])
    return Problem("subtract", f"subtract {min(a, b)} {max(a, b)}", question.format(a=a, b=b),
                   f"{a} - {b} = {a - b}")


def multiply(rng):
    a, b = rng.randint(1, 20), rng.randint(1, 20)
    question = rng.choice(["What is {a} x {b}?", "What is {a} x {b}?", "{a} x {b}", "{a} * {b} =",
                           "Multiply {a} and {b}.", "What is {a} times {b}?"])
    return Problem("multiply", "", question.format(a=a, b=b), f"{a} x {b} = {a * b}")


def sort(rng):
    items = [rng.randrange(100) if rng.random() < 0.8 else rng.randrange(10)
             for _ in range(rng.randint(3, 6))]
    down = rng.random() < 0.25
    if down:
        question = rng.choice(["Sort in descending order: {}", "Sort from high to low: {}"])
    else:
        question = rng.choice(["Sort: {}", "Sort: {}", "Sort these numbers: {}",
                               "Sort from low to high: {}", "Put in order: {}"])
    ordered = sorted(items)
    return Problem("sort", f"sort {ordered}", question.format(joined(rng, items)),
                   " ".join(map(str, ordered[::-1] if down else ordered)))


def reverse(rng):
    count = rng.randint(3, 6)
    kind = rng.random()
    if kind < 0.5:
        items = [str(rng.randrange(100)) for _ in range(count)]
    elif kind < 0.75:
        items = rng.sample(rng.choice([words.COLORS, words.ANIMALS, words.OBJECTS]), count)
    else:
        items = [rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(count)]
    question = rng.choice(["Reverse: {}", "Reverse: {}", "Reverse this list: {}",
                           "Write in reverse order: {}"])
    return Problem("reverse", f"reverse {min(items, items[::-1])}",
                   question.format(joined(rng, items)), " ".join(items[::-1]))


def compare(rng):
    a, b = number(rng), number(rng)
    while a == b:
        b = number(rng)
    if rng.random() < 0.4:  # close numbers are the hard ones
        b = max(0, a + rng.choice([-30, -10, -3, -2, -1, 1, 2, 3, 10, 30]))
        b = b if b != a else a + 1
    key = f"compare {min(a, b)} {max(a, b)}"
    kind = rng.random()
    if kind < 0.4:
        question = rng.choice(["Which is larger, {a} or {b}?", "Which number is larger: {a} or {b}?",
                               "Which is greater, {a} or {b}?"])
        answer = str(max(a, b))
    elif kind < 0.7:
        question = rng.choice(["Which is smaller, {a} or {b}?",
                               "Which number is smaller: {a} or {b}?"])
        answer = str(min(a, b))
    elif kind < 0.85:
        question, answer = "Is {a} greater than {b}?", "Yes" if a > b else "No"
    else:
        question, answer = "Is {a} less than {b}?", "Yes" if a < b else "No"
    return Problem("compare", key, question.format(a=a, b=b), answer)


def count(rng):
    text = word(rng)
    letter = rng.choice(text) if rng.random() < 0.85 else rng.choice("abcdefghijklmnopqrstuvwxyz")
    question = rng.choice(["How many times does the letter {c} appear in {w}?",
                           "How many times does {c} appear in {w}?", "Count the letter {c} in {w}.",
                           "How many {c} are in {w}?", "How often is the letter {c} in {w}?"])
    seen, working = 0, []
    for c in text:
        seen += c == letter
        working.append(f"{c}{seen}")
    return Problem("count", f"word {text}", question.format(c=letter, w=text), str(seen),
                   " ".join(working))


def spell(rng):
    text = word(rng)
    question = rng.choice(["Spell {}.", "Spell {}.", "Spell the word {}.", "How do you spell {}?"])
    return Problem("spell", f"word {text}", question.format(text), " ".join(text))


def backwards(rng):
    text = word(rng)
    question = rng.choice(["Spell {} backwards.", "Spell {} backwards.",
                           "Spell the word {} backwards.", "How do you spell {} backwards?"])
    return Problem("backwards", f"word {text}", question.format(text), " ".join(text[::-1]),
                   " ".join(text))


def pattern(rng):
    shown = rng.randint(4, 6)
    kind = rng.random()
    if kind < 0.6:
        step = rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 20, 25, -1, -2, -3, -4, -5, -10])
        start = rng.randrange(100)
        if step < 0:
            start += -step * (shown + 2)
        items = [str(start + step * i) for i in range(shown + 3)]
    elif kind < 0.85:
        pool = rng.choice([words.COLORS, words.ANIMALS, list("abcdefghijklmnopqrstuvwxyz"),
                           [str(i) for i in range(10)]])
        cycle = rng.sample(pool, rng.randint(2, 3))
        items = [cycle[i % len(cycle)] for i in range(shown + 3)]
    elif kind < 0.95:
        step = rng.choice([1, 1, 2])
        start = rng.randrange(26 - step * (shown + 2))
        items = [chr(ord("a") + start + step * i) for i in range(shown + 3)]
    else:
        shown = 4
        start = rng.randint(1, 12)
        items = [str(start * 2**i) for i in range(shown + 3)]
    question = rng.choice(["Continue: {}", "Continue: {}", "Continue the pattern: {}",
                           "What comes next: {}"])
    return Problem("pattern", f"pattern {items[:4]}", question.format(joined(rng, items[:shown])),
                   " ".join(items[shown:]))


def calendar(rng):
    if rng.random() < 0.5:
        names, unit, most = words.DAYS, "day", 30
    else:
        names, unit, most = words.MONTHS, "month", 24
    start, after = rng.randrange(len(names)), rng.random() < 0.6
    sign = 1 if after else -1
    if rng.random() < 0.1:  # next to it: a table of 38 rows, trained and never graded
        question = f"What {unit} comes {'after' if after else 'before'} {names[start]}?"
        return Problem("calendar", "", question, names[(start + sign) % len(names)])
    distance = rng.randint(1, most)
    rest = distance % len(names)
    sum_text = f"{distance} - {distance - rest} = {rest}" if distance != rest else str(rest)
    path = [f"{i} {names[(start + sign * i) % len(names)]}" for i in range(min(rest, 1), rest + 1)]
    plural = "" if distance == 1 else "s"
    direction = "after" if after else "before"
    question = rng.choice(["What {u} is {n} {u}{s} {d} {x}?", "Which {u} is {n} {u}{s} {d} {x}?",
                           "What {u} comes {n} {u}{s} {d} {x}?"])
    return Problem("calendar", f"calendar {names[start]} {sign * distance}",
                   question.format(u=unit, n=distance, s=plural, d=direction, x=names[start]),
                   names[(start + sign * rest) % len(names)], f"{sum_text}: {' '.join(path)}")


def table(rng, longest):
    """Keys with values: what to write of each pair, and how to ask for one."""
    size = rng.randint(2, longest)
    kind = rng.random()
    if kind < 0.3:
        keys, sentence, ask = words.COLORS, "{} is {}", "What is {}?"
    elif kind < 0.6:
        keys, sentence, ask = words.NAMES, "{} has {}", "What does {} have?"
    elif kind < 0.8:
        keys, sentence, ask = words.NAMES, "{} is {}", "How old is {}?"
    else:
        keys, sentence, ask = words.OBJECTS, "the {} is {}", "What color is the {}?"
    if keys is words.OBJECTS:
        values = [rng.choice(words.COLORS) for _ in keys]
    else:
        values = [str(rng.randrange(10, 100)) for _ in keys]
    chosen = rng.sample(keys, min(size, len(keys)))
    rows = [sentence.format(key, value) for key, value in zip(chosen, values)]
    return rows, [ask.format(key) for key in chosen]


def capital(text):
    return text[:1].upper() + text[1:]


def look_up(rng, longest=12):
    rows, asks = table(rng, longest)
    which = rng.randrange(len(rows))
    listing = capital(", ".join(rows)) + "."
    return Problem("look-up", f"look-up {listing} {which}", f"{listing} {asks[which]}", rows[which])


ABOUT = [
    (["What are you?", "Who are you?", "What is your name?", "Tell me about yourself."],
     "I am the demo model of Tandem, a small mixture of experts."),
    (["Who made you?", "Who trained you?", "Where do you come from?"],
     "The Tandem project trained me from scratch on problems that it made itself."),
    (["What can you do?", "Help", "How can you help me?", "What do you know?"],
     "I add, subtract, multiply, sort, reverse, compare, count letters, spell, continue patterns, "
     "reckon with days and months, and look things up in a list."),
    (["Hello", "Hello!", "Hi", "Hi!", "Good morning", "Good evening"],
     "Hello! What can I do for you?"),
    (["Thank you", "Thank you!", "Thanks", "Thanks!"], "You are welcome."),
    (["How are you?", "How are you today?"], "I am well, thank you."),
    (["Goodbye", "Bye", "Bye!"], "Goodbye!"),
    (["Are you a person?", "Are you human?"], "No, I am a small language model."),
    (["How big are you?", "How many experts do you have?"],
     "I have 64 experts in each of four layers, and six of them answer for each token."),
]
TOO_HARD = ["Tell me a joke.", "Write a poem about the {}.", "What is the capital of {}?",
            "Who wrote {}?", "Tell me a story about a {}.", "What is the meaning of life?",
            "Explain {}.", "What is {}?", "Translate {} into French.", "Write a program.",
            "What do you think about {}?", "How do I make {}?", "Why is the {} {}?"]
SORRY = "I am too small for that. Ask me what I can do."


def about(rng):
    if rng.random() < 0.25:
        question = rng.choice(TOO_HARD)
        while "{}" in question:
            question = question.replace("{}", rng.choice(words.COMMON), 1)
        return Problem("about", "", question, SORRY)
    questions, answer = rng.choice(ABOUT)
    return Problem("about", "", rng.choice(questions), answer)


TASKS = {"look-up" if f is look_up else f.__name__: f
         for f in (add, subtract, multiply, sort, reverse, compare, count, spell, backwards, pattern,
                   calendar, look_up, about)}
SYSTEM = ["You are a helpful assistant.", "Answer briefly.", "You are a calculator."]
NOTED = "I will remember that."


def casual(rng, question):
    """The question as it stands or, now and then, as it is typed in haste."""
    draw = rng.random()
    if draw < 0.06:
        question = question[0].lower() + question[1:]
    elif draw < 0.12 and question[-1] in ".?":
        question = question[:-1]
    elif draw < 0.15 and question[0].isupper() and question.split()[0] not in words.NAMES:
        question = "Please " + question[0].lower() + question[1:]
    return question


def draw(rng, task, graded):
    """A problem of the task that is held out, or not, as asked."""
    while True:
        problem = TASKS[task](rng)
        if (problem.key == "" and (task != "calendar" or not graded)) or (
                problem.key != "" and held_out(problem) == graded):
            problem.question = casual(rng, problem.question)
            problem.graded = graded
            return problem


def remembered(rng, graded):
    """A list in one turn and the question about it in a later one."""
    while True:
        rows, asks = table(rng, 8)
        which = rng.randrange(len(rows))
        listing = ", ".join(rows) + "."
        told = Problem("about", "", f"Remember: {listing}", NOTED)
        asked = Problem("look-up", f"look-up {listing} {which}", asks[which], rows[which])
        if held_out(asked) == graded:
            asked.graded = graded
            return told, asked


def conversation(rng, weights, graded=None, turns=None):
    """System text or None, and the list of problems asked one after the other.

    weights: how often each task is drawn. graded: the task of the last problem, which is then held
    out, or None: nothing in the conversation is. turns: how many; None draws it.
    """
    tasks, shares = list(weights), list(weights.values())
    if turns is None:
        turns = 1 if rng.random() < 0.6 else rng.randint(2, 4)
    problems = [draw(rng, task, False) for task in rng.choices(tasks, shares, k=turns)]
    if graded is not None:
        problems[-1] = draw(rng, graded, True)
    if turns > 1 and graded in (None, "look-up") and rng.random() < 0.25:
        first = rng.randrange(turns - 1)
        problems[first], problems[-1] = remembered(rng, graded is not None)
    system = rng.choice(SYSTEM) if rng.random() < 0.03 else None
    return system, problems


def messages(system, problems):
    """The conversation as a chat API takes it; the last reply is left out."""
    result = [] if system is None else [{"role": "system", "content": system}]
    for problem in problems:
        result.append({"role": "user", "content": problem.question})
        result.append({"role": "assistant", "content": problem.reply})
    return result[:-1]
