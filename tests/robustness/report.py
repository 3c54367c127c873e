"""Tables, the timeline as CSV, and its plot as SVG."""
import collections
import csv
import html

COLORS = ["#d62728", "#9467bd", "#2ca02c", "#ff7f0e", "#8c564b", "#17becf", "#e377c2", "#7f7f7f",
          "#bcbd22", "#1f77b4"]


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def write_csv(file, rows):
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, rows[0].keys() if rows else ["time_s"])
        writer.writeheader()
        writer.writerows(rows)


def stall_after(fault, gaps, next_start):
    """The longest gap of any stream that began while the fault was on, or until the next one."""
    return max((end - start for start, end, _ in gaps
                if end > fault.start_s and start < max(fault.end_s, next_start)), default=0.0)


def table(run):
    load = run.load
    ended = load.ended
    failed = [e for e in ended if e.error]
    differing = [e for e in ended if e.difference]
    stalls = [e.stall_s for e in ended]
    between = [e.between_s for e in ended]
    lines = [f"{'fault':24}{'times':>6}{'skipped':>9}{'stall p50':>11}{'max':>8}{'recovery max':>14}"]
    kinds = collections.defaultdict(list)
    for i, fault in enumerate(run.faults):
        following = run.faults[i + 1].start_s if i + 1 < len(run.faults) else float("inf")
        kinds[fault.kind].append((fault, stall_after(fault, load.gaps, following)))
    for kind in sorted(set(kinds) | set(run.skipped)):
        after = [stall for _, stall in kinds[kind]]
        recovery = max((fault.recovered_s - fault.end_s for fault, _ in kinds[kind]), default=0.0)
        lines.append(f"{kind:24}{len(after):6}{run.skipped.get(kind, ''):>9}"
                     f"{percentile(after, .5):9.2f} s{max(after, default=0.0):6.2f} s"
                     f"{recovery:12.2f} s")
    lines += ["",
              f"streams: {len(ended)} finished, {len(failed)} failed, {len(differing)} differing, "
              f"{sum(e.retried > 0 for e in ended)} asked again over a restart of the gateway",
              f"tokens: {load.tokens}, {load.tokens / max(run.seconds, 1e-9):.0f} per second",
              f"longest time without a chunk, per stream: p50 {percentile(stalls, .5):.2f} s, "
              f"p99 {percentile(stalls, .99):.2f} s, max {max(stalls, default=0.0):.2f} s "
              f"(allowed: {run.options.max_stall:g} s)",
              f"after the first chunk: p50 {percentile(between, .5):.2f} s, "
              f"p99 {percentile(between, .99):.2f} s, max {max(between, default=0.0):.2f} s"]
    if run.computed_again is not None:
        lines.append(f"tokens of sequences that had to be computed again: {run.computed_again}")
    for e in (failed + differing)[:10]:
        lines.append(f"  stream {e.stream}, request {e.request}, {e.start_s:.1f} to {e.end_s:.1f} s: "
                     f"{e.error or e.difference}")
    for defect in run.defects:
        lines.append(f"  {defect}")
    for kind, why in run.why_skipped.items():
        lines.append(f"  skipped {kind}: {why}")
    return "\n".join(lines)


def line(points, x, y, color, steps=False):
    path = []
    for i, (t, value) in enumerate(points):
        if i and steps:
            path.append(f"H{x(t):.1f}V{y(value):.1f}")
        else:
            path.append(f"{'L' if i else 'M'}{x(t):.1f},{y(value):.1f}")
    return f'<path d="{"".join(path)}" fill="none" stroke="{color}" stroke-width="1.5"/>'


def write_svg(file, rows, faults, title):
    """Four panels over time: tokens per second, the longest stall of any stream, workers, placements;
    a line per fault."""
    width, left, top, height, space = 1100, 70, 40, 150, 40
    end = max([row["time_s"] for row in rows] + [1])
    kinds = sorted({fault.kind for fault in faults})
    color_of = {kind: COLORS[i % len(COLORS)] for i, kind in enumerate(kinds)}
    x = lambda t: left + (width - left - 20) * t / end  # noqa: E731
    panels = [("tokens/s", [("tokens_per_s", "#1f77b4")]),
              ("stall, s", [("longest_stall_s", "#d62728")]),
              ("workers alive", [("attention_alive", "#ff7f0e"), ("experts_alive", "#2ca02c")]),
              ("placement", [("placement_counter", "#9467bd")])]
    total = top + len(panels) * (height + space) + 20
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{total}" '
           'font-family="sans-serif" font-size="12">',
           '<rect width="100%" height="100%" fill="white"/>',
           f'<text x="{left}" y="20" font-size="14">{html.escape(title)}</text>']
    for i, (name, columns) in enumerate(panels):
        bottom = top + i * (height + space) + height
        most = max([row[column] for row in rows for column, _ in columns] + [0.1])
        y = lambda v, b=bottom, m=most: b - height * v / m  # noqa: E731
        out.append(f'<path d="M{left},{bottom - height}V{bottom}H{width - 20}" fill="none" '
                   'stroke="black"/>')
        out.append(f'<text x="8" y="{bottom - height + 10}">{most:g}</text>'
                   f'<text x="8" y="{bottom}">0</text>'
                   f'<text x="{left}" y="{bottom - height - 6}">{name}</text>')
        for fault in faults:
            out.append(f'<rect x="{x(fault.start_s):.1f}" y="{bottom - height}" width='
                       f'"{max(1, x(fault.end_s) - x(fault.start_s)):.1f}" height="{height}" '
                       f'fill="{color_of[fault.kind]}" opacity="0.3"><title>'
                       f'{html.escape(f"{fault.start_s:.1f} s: {fault.kind} {fault.detail}")}'
                       '</title></rect>')
        for j, (column, color) in enumerate(columns):
            out.append(line([(row["time_s"], row[column]) for row in rows], x, y, color, i > 1))
            out.append(f'<text x="{left + 120 + 130 * j}" y="{bottom - height - 6}" '
                       f'fill="{color}">{column}</text>')
    at = left
    for kind in kinds:
        out.append(f'<text x="{at}" y="{total - 12}" fill="{color_of[kind]}">{kind}</text>')
        at += 8 * len(kind) + 20
    out.append(f'<text x="{width - 90}" y="{total - 12}">0 to {end:.0f} s</text></svg>')
    file.write_text("\n".join(out))
