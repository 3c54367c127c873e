#!/usr/bin/env python3
"""Prints the table of docs/numbers.md from a report of the golden test.

    build/release/bin/integration_golden_test --gtest_output=xml:golden.xml
    tools/golden/summarize.py golden.xml
"""
import collections
import sys
import xml.etree.ElementTree as ElementTree

PATHS = {"F32LogitsAsARequest": "as a request", "F32LogitsByPrefill": "prefill",
         "F32LogitsByDecode": "decode", "F32LogitsByChunks": "chunk=100"}


def main():
    errors = collections.defaultdict(dict)
    ratios = {}
    for case in ElementTree.parse(sys.argv[1]).iter("testcase"):
        test, model = case.get("name").split("/")
        found = {p.get("name"): float(p.get("value")) for p in case.iter("property")}
        if test in PATHS and found:
            errors[model][PATHS[test]] = max(found.values())
        elif "ratio" in found:
            ratios[model] = found["ratio"]
    print("| model | " + " | ".join(PATHS.values()) + " | bf16, of the reference's own |")
    print("|---|" + "---|" * (len(PATHS) + 1))
    for model, found in errors.items():
        row = [f"{found[path]:.1e}" if path in found else "" for path in PATHS.values()]
        print(f"| {model} | " + " | ".join(row) + f" | {ratios.get(model, 0):.2f} |")


if __name__ == "__main__":
    main()
