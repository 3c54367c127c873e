#!/usr/bin/env python3
"""Plots what `simulate serve --csv` wrote, over the number of expert workers, as SVG.

    plot.py cpu.csv docs/scaling_cpu.svg --title "two cores a worker, int4"
"""
import argparse
import collections
import csv
import html
import math
import pathlib

COLORS = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b"]
WIDTH, LEFT, TOP, HEIGHT, SPACE = 900, 70, 50, 190, 50
BUSY = [("attention_busy_max", "attention"), ("expert_busy_max", "experts"),
        ("attention_port_busy_max", "attention port"), ("expert_port_busy_max", "expert port"),
        ("gateway_busy", "gateway")]


def panel(index, name, lines, xs, log):
    """`lines`: [(label, [(x, y)])]. Both axes logarithmic, or y from 0 to 1."""
    bottom = TOP + index * (HEIGHT + SPACE) + HEIGHT
    values = [y for _, points in lines for _, y in points if y > 0]
    low, high = (min(values) / 1.3, max(values) * 1.3) if log else (0, 1)
    span = math.log2(max(xs) / min(xs)) or 1

    def x_of(x):
        return LEFT + (WIDTH - LEFT - 160) * math.log2(x / min(xs)) / span

    def y_of(y):
        share = math.log(max(y, low) / low) / math.log(high / low) if log else y
        return bottom - HEIGHT * share

    out = [f'<path d="M{LEFT},{bottom - HEIGHT}V{bottom}H{WIDTH - 150}" fill="none" stroke="black"/>',
           f'<text x="{LEFT}" y="{bottom - HEIGHT - 8}">{html.escape(name)}</text>']
    ticks = [10.0 ** e for e in range(-3, 8) if low <= 10.0 ** e <= high] if log else [0, 0.5, 1]
    for tick in ticks:
        out.append(f'<path d="M{LEFT},{y_of(tick):.1f}H{WIDTH - 150}" stroke="#ddd"/>'
                   f'<text x="{LEFT - 8}" y="{y_of(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for x in xs:
        out.append(f'<text x="{x_of(x):.1f}" y="{bottom + 16}" text-anchor="middle">{x}</text>')
    for i, (label, points) in enumerate(lines):
        color = COLORS[i % len(COLORS)]
        path = "".join(f"{'L' if j else 'M'}{x_of(x):.1f},{y_of(y):.1f}"
                       for j, (x, y) in enumerate(points))
        out.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>')
        out += [f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="2.5" fill="{color}"/>'
                for x, y in points]
        out.append(f'<text x="{WIDTH - 145}" y="{bottom - HEIGHT + 14 + 16 * i}" fill="{color}">'
                   f'{html.escape(label)}</text>')
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", type=pathlib.Path)
    parser.add_argument("svg", type=pathlib.Path)
    parser.add_argument("--title", default="")
    options = parser.parse_args()
    with options.csv.open() as file:
        rows = list(csv.DictReader(file))
    xs = sorted({int(row["expert_workers"]) for row in rows})
    by_attention = collections.defaultdict(list)
    for row in rows:
        by_attention[int(row["attention_workers"])].append(row)

    def lines(column):
        return [(f"{n} attention worker{'s' if n > 1 else ''}",
                 [(int(row["expert_workers"]), float(row[column])) for row in of])
                for n, of in sorted(by_attention.items())]

    most = max(by_attention)
    busy = [(label, [(int(row["expert_workers"]), float(row[column])) for row in by_attention[most]])
            for column, label in BUSY]
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" '
           f'height="{TOP + 3 * (HEIGHT + SPACE) + 10}" font-family="sans-serif" font-size="12">',
           '<rect width="100%" height="100%" fill="white"/>',
           f'<text x="{LEFT}" y="22" font-size="14">{html.escape(options.title)}</text>']
    out += panel(0, "tokens per second, by expert workers", lines("tokens_per_s"), xs, True)
    out += panel(1, "a decode step, median, ms", lines("step_p50_ms"), xs, True)
    out += panel(2, f"share of the time for which the busiest is busy, {most} attention workers", busy,
                 xs, False)
    options.svg.write_text("\n".join(out + ["</svg>"]) + "\n")


if __name__ == "__main__":
    main()
