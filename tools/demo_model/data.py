"""Batches of conversations for training and for grading by one forward pass."""
import torch
from tokenizers import Tokenizer

import tasks

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"


class Encoder:
    """Conversations to ids, in the chat format of DeepSeek-V2-Lite-Chat."""

    def __init__(self, path):
        self.tokenizer = Tokenizer.from_file(str(path))

    def encode(self, system, problems):
        """ids, and for each problem the span [begin, end) of its reply with the end of sentence.

        Prompt and reply are encoded apart, as a server sees them: the prompt ends in "Assistant:".
        """
        text = BOS + (system + "\n\n" if system else "")
        ids, spans = [], []
        for problem in problems:
            text += f"User: {problem.question}\n\nAssistant:"
            ids += self.tokenizer.encode(text, add_special_tokens=False).ids
            reply = self.tokenizer.encode(f" {problem.reply}{EOS}", add_special_tokens=False).ids
            spans.append((len(ids), len(ids) + len(reply)))
            ids += reply
            text = ""
        return ids, spans


class Batch:
    """Conversations in blocks of like length, padded within a block.

    ids, positions, real: [rows]; blocks: (batch, length) each; wanted: rows that predict a token of
    a reply; targets: that token; owner: which problem of the batch it belongs to; problems: theirs.
    """

    def __init__(self, encoder, conversations, num_blocks=10):
        encoded = []
        for system, problems in conversations:
            encoded.append((*encoder.encode(system, problems), problems))
        encoded.sort(key=lambda item: len(item[0]))
        # A block ends with its share of the tokens, or where lengths grow over the first by a fifth.
        share = sum(len(ids) for ids, _, _ in encoded) / num_blocks
        groups = [[]]
        for item in encoded:
            group, length = groups[-1], len(item[0])
            if group and (len(group) * length >= share or length > 1.2 * len(group[0][0]) + 4):
                groups.append([])
            groups[-1].append(item)
        ids, positions, real, wanted, targets, owner = [], [], [], [], [], []
        self.blocks, self.problems = [], []
        for group in groups:
            length = len(group[-1][0])
            self.blocks.append((len(group), length))
            for row_ids, spans, problems in group:
                first = len(ids)
                for (begin, end), problem in zip(spans, problems):
                    wanted += range(first + begin - 1, first + end - 1)
                    targets += row_ids[begin:end]
                    owner += [len(self.problems)] * (end - begin)
                    self.problems.append(problem)
                pad = length - len(row_ids)
                ids += row_ids + [0] * pad
                real += [1.0] * len(row_ids) + [0.0] * pad
                positions += range(length)
        self.ids = torch.tensor(ids)
        self.positions = torch.tensor(positions)
        self.real = torch.tensor(real)
        self.wanted = torch.tensor(wanted)
        self.targets = torch.tensor(targets)
        self.owner = torch.tensor(owner)

    def run(self, model):
        return model(self.ids, self.positions, self.blocks, self.real, self.wanted)


def draw_batch(rng, encoder, weights, tokens):
    """Conversations of about `tokens` tokens; one in 300 is long, so that far positions are seen."""
    conversations, total = [], 0
    while total < tokens:
        turns = rng.randint(10, 40) if rng.random() < 0.003 else None
        conversations.append(tasks.conversation(rng, weights, turns=turns))
        # Four characters a token would be prose; the problems have about two.
        total += sum(len(p.question) / 2.2 + len(p.reply) / 1.7 + 7
                     for p in conversations[-1][1])
    return Batch(encoder, conversations)
