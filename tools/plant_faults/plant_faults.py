#!/usr/bin/env python3
"""Plants the faults of faults.toml one at a time and names those that no test notices.

All of it happens in build/plant: a copy of the checkout's files, its uncommitted changes included,
with a build folder of its own that is kept. Each fault costs two small builds: its own, and that of
the file as it was, which ccache knows.
"""
import argparse
import dataclasses
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIST = pathlib.Path(__file__).with_name("faults.toml")
COPY = ROOT / "build" / "plant"
BUILD = COPY / "build" / "release"
# A test may take so long, and 10 times its time without a fault: what takes longer hangs.
LEAST_LIMIT_S = 30


@dataclasses.dataclass(frozen=True)
class Test:
    """Cases of tests/<name>_test.cc or .py that should notice a fault."""
    name: str
    cases: str = "*"

    @property
    def is_python(self):
        return not self.source(ROOT).exists() and self.source(ROOT, "py").exists()

    @property
    def target(self):
        return self.name.replace("/", "_") + "_test"

    def source(self, root, kind="cc"):
        return root / "tests" / f"{self.name}_test.{kind}"

    def command(self):
        if self.is_python:
            return [sys.executable, str(self.source(COPY, "py"))]
        return [str(BUILD / "bin" / self.target), f"--gtest_filter={self.cases}",
                "--gtest_fail_fast", "--gtest_brief=1"]

    def __str__(self):
        return self.name if self.cases == "*" else f"{self.name} ({self.cases})"


@dataclasses.dataclass(frozen=True)
class Fault:
    name: str   # what goes wrong
    file: str
    text: str   # occurs once in `file`
    fault: str  # what it is replaced by
    tests: tuple


def read_list(text):
    """The faults of a list. Raises ValueError where an entry is malformed."""
    faults = []
    for entry in tomllib.loads(text)["fault"]:
        tests = entry.pop("tests", [])
        cases = entry.pop("cases", "*")
        try:
            faults.append(Fault(**entry, tests=tuple(Test(name, cases) for name in tests)))
        except TypeError as error:
            raise ValueError(f"{entry.get('name', entry)}: {error}") from None
    return faults


def problems(faults, root):
    """Why a list does not fit the tree at `root`: a sentence for each entry that is stale."""
    names = set()
    for fault in faults:
        if fault.name in names:
            yield f"{fault.name}: two entries have this name"
        names.add(fault.name)
        if fault.text == fault.fault:
            yield f"{fault.name}: nothing changes"
        if not fault.tests:
            yield f"{fault.name}: no test is named"
        for test in fault.tests:
            if not any(test.source(root, kind).exists() for kind in ("cc", "py")):
                yield f"{fault.name}: there is no test {test.name}"
        path = root / fault.file
        if not path.is_file():
            yield f"{fault.name}: there is no file {fault.file}"
            continue
        count = path.read_text(encoding="utf-8").count(fault.text)
        if count != 1:
            yield f"{fault.name}: its text occurs {count} times in {fault.file}, not once"


class Planted:
    """A file with a fault in it, until the end of the `with`."""

    def __init__(self, fault, root):
        self.path = root / fault.file
        self.before = self.path.read_text(encoding="utf-8")
        self.after = self.before.replace(fault.text, fault.fault)

    def __enter__(self):
        self.path.write_text(self.after, encoding="utf-8")

    def __exit__(self, *unused):
        self.path.write_text(self.before, encoding="utf-8")


def sync(root, copy):
    """Makes `copy` hold the files of the checkout at `root` that git knows or would add. What has
    not changed is not touched, so that it is not built again."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                            cwd=root, check=True, capture_output=True, text=True).stdout
    files = {name for name in listed.split("\0") if name and (root / name).is_file()}
    for folder, folders, names in os.walk(copy):
        here = pathlib.Path(folder)
        if here == copy and "build" in folders:
            folders.remove("build")
        for name in names:
            if str((here / name).relative_to(copy)) not in files:
                (here / name).unlink()
    for name in files:
        to = copy / name
        if to.exists() and to.read_bytes() == (root / name).read_bytes():
            continue
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, to)


def execute(command, limit_s=None):
    """Runs a command to its end. Returns its exit code, None where it was still running at the
    limit, and its output. Nothing of it is left, also where this is interrupted: a compiler that
    goes on would leave an object of a fault that has been taken back."""
    with subprocess.Popen(command, cwd=COPY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace", start_new_session=True) as process:
        try:
            output, _ = process.communicate(timeout=limit_s)
            return process.returncode, output
        except subprocess.TimeoutExpired:
            return None, ""
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def build(tests):
    """Builds what `tests` need. Returns the compiler's words, or "" where it builds."""
    targets = sorted({test.target for test in tests if not test.is_python})
    if not targets:
        return ""
    if not (BUILD / "build.ninja").exists():
        code, output = execute(["cmake", "-S", str(COPY), "-B", str(BUILD), "-G", "Ninja",
                                "-DCMAKE_BUILD_TYPE=Release"])
        if code != 0:
            return output
    code, output = execute(["ninja", "-C", str(BUILD), "--quiet", *targets])
    return "" if code == 0 else output or f"ninja ended with {code}"


def run(test, limit_s):
    """Runs a test. Returns how it failed, or "" where it passed."""
    code, output = execute(test.command(), limit_s)
    if code is None:
        return f"took longer than {limit_s:.0f} s"
    if code == 0:
        return "has no such case" if "Running 0 tests" in output else ""
    failed = re.search(r"\[  FAILED  \] (\S+)|^(?:FAIL|ERROR): (\S+)", output, re.M)
    if failed:
        return (failed[1] or failed[2]).rstrip(",")
    return f"ended with {code}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="*", help="plant only faults whose names contain one of these")
    parser.add_argument("--check", action="store_true",
                        help="only see that the list still fits the sources; builds nothing")
    args = parser.parse_args()
    faults = read_list(LIST.read_text(encoding="utf-8"))
    stale = list(problems(faults, ROOT))
    if stale:
        print("\n".join(stale), file=sys.stderr)
        return 1
    if args.check:
        print(f"faults: {len(faults)}, the text of each occurs once")
        return 0
    if args.names:
        faults = [fault for fault in faults if any(name in fault.name for name in args.names)]
    # A run that is told to end restores the copy, as one that is interrupted does.
    signal.signal(signal.SIGTERM, lambda *unused: sys.exit(1))

    sync(ROOT, COPY)
    tests = list(dict.fromkeys(test for fault in faults for test in fault.tests))
    print(f"building {len(tests)} tests without a fault", flush=True)
    words = build(tests)
    if words:
        print(words, "the sources do not build", sep="\n", file=sys.stderr)
        return 1
    limits = {}
    for test in tests:
        start = time.monotonic()
        how = run(test, 600)
        if how:
            print(f"{test} fails without a fault: {how}", file=sys.stderr)
            return 1
        limits[test] = LEAST_LIMIT_S + 10 * (time.monotonic() - start)

    survivors, broken = [], []
    for number, fault in enumerate(faults, 1):
        print(f"{number}/{len(faults)} {fault.file}: {fault.name}: ", end="", flush=True)
        with Planted(fault, COPY):
            words = build(fault.tests)
            if words:
                broken.append(fault)
                print("does not compile", flush=True)
                print(words, file=sys.stderr)
                continue
            for test in fault.tests:
                how = run(test, limits[test])
                if how:
                    print(f"caught by {test.name}: {how}", flush=True)
                    break
            else:
                survivors.append(fault)
                print("SURVIVES", flush=True)

    print(f"caught {len(faults) - len(survivors) - len(broken)} of {len(faults)}")
    for fault in survivors:
        print(f"survives: {fault.name} ({fault.file})")
    for fault in broken:
        print(f"does not compile: {fault.name} ({fault.file})")
    return 1 if survivors or broken else 0


if __name__ == "__main__":
    sys.exit(main())
