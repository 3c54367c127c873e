"""What scripts/gpu-check does with its steps, by a folder whose programs are shell scripts."""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "gpu-check"
STEPS = """
steps=("good 20" "crash 20" "slow 1" "last 20")
do_good() { echo "it's \\"fine\\""; echo '[{"what": "speed", "median": 3.5}, {"what": "more"}]'; run gpu_bench; }
do_crash() { kill -SEGV $BASHPID; }
do_slow() { echo begun; sleep 30; }
do_last() { [ ! -e "$folder/wait" ] || { touch "$folder/waiting"; sleep 300; }; }
"""


class GpuCheckTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="tandem-test-"))
        self.addCleanup(shutil.rmtree, self.folder)
        shutil.copy(SCRIPT, self.folder)
        (self.folder / "build").write_text("build-1\n")
        (self.folder / "emulated").touch()
        (self.folder / "steps").write_text(STEPS)
        self.pack("exit 0")

    def pack(self, gpu_bench):
        stage = self.folder / "stage"
        for name, text in (("programs/gpu_bench", gpu_bench), ("lib/none", ""),
                           ("libc/ld-linux-x86-64.so.2", 'shift 2; exec "$@"')):
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            (stage / name).write_text("#!/bin/sh\n" + text + "\n")
            (stage / name).chmod(0o755)
        with tarfile.open(self.folder / "programs.tar.gz", "w:gz") as tar:
            tar.add(stage, arcname=".")
        shutil.rmtree(stage)

    def command(self, *arguments):
        return ["bash", str(self.folder / "gpu-check"), *arguments]

    def check(self, *arguments):
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=60)

    def results(self):
        lines = (self.folder / "results" / "results.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def outcomes(self):
        return [(r["step"], r["outcome"]) for r in self.results()]

    def test_one_steps_end_is_not_the_others(self):
        run = self.check()
        self.assertEqual(run.returncode, 1, run.stderr)
        self.assertEqual(self.outcomes(), [("good", "passed"), ("crash", "failed"),
                                           ("slow", "timed out"), ("last", "passed")])
        good, crash, slow, _ = self.results()
        self.assertEqual(good["tail"], 'it\'s "fine"\n'.rstrip())
        self.assertEqual(good["figures"][0], {"what": "speed", "median": 3.5})
        self.assertEqual(crash["exit"], 139)
        self.assertEqual(slow["tail"], "begun")
        self.assertLess(slow["seconds"], 10)
        table = (self.folder / "results" / "results.md").read_text()
        self.assertIn("| slow | timed out |", table)
        self.assertIn('it\'s "fine"\n[{"what": "speed", "median": 3.5}, {"what": "more"}]', table)

    def test_what_has_a_result_is_not_run_again(self):
        self.check()
        self.assertEqual(self.check().returncode, 1)
        self.assertEqual(len(self.results()), 4)
        (self.folder / "steps").write_text(STEPS.replace("do_crash() {", "do_crash() { return 0;"))
        self.check("--only", "crash,slow")
        self.assertEqual(self.outcomes()[4:], [("crash", "passed"), ("slow", "timed out")])
        (self.folder / "build").write_text("build-2\n")
        self.check("--only", "good")
        self.assertEqual(self.check().returncode, 1)
        self.assertEqual(len(self.results()), 10)

    def test_a_killed_run_goes_on_where_it_was(self):
        (self.folder / "wait").touch()
        (self.folder / "steps").write_text(STEPS.replace("slow 1", "good 20"))
        run = subprocess.Popen(self.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.wait_for(lambda: (self.folder / "waiting").exists())
        run.send_signal(signal.SIGKILL)
        run.wait()
        group = int((self.folder / "results" / "running").read_text())
        os.killpg(group, 0)  # it goes on
        (self.folder / "wait").unlink()
        self.check()
        self.assertEqual(self.outcomes()[-1], ("last", "passed"))
        self.wait_for(lambda: not self.is_alive(group))

    def test_what_was_skipped_is_tried_again(self):
        (self.folder / "steps").write_text('steps=("good 20")\ndo_good() { return 99; }\n')
        self.assertEqual(self.check().returncode, 0)
        (self.folder / "steps").write_text('steps=("good 20")\ndo_good() { echo "| a |"; echo "{\\"a\\": 1}"; }\n')
        self.assertEqual(self.check().returncode, 0)
        self.assertEqual(self.outcomes(), [("good", "skipped"), ("good", "passed")])
        self.assertEqual(self.results()[1]["figures"], {"a": 1})
        self.assertIn("\n\n| a |\n", (self.folder / "results" / "results.md").read_text())

    def test_the_time_limit_leaves_the_rest_for_the_next_run(self):
        (self.folder / "wait").touch()
        (self.folder / "steps").write_text(STEPS.replace('"slow 1" ', "").replace('"crash 20" ', ""))
        run = self.check("--time-limit", "3")
        self.assertIn("last: cut off by --time-limit", run.stdout)
        self.assertEqual(run.returncode, 0)
        self.assertEqual(self.outcomes(), [("good", "passed")])
        (self.folder / "wait").unlink()
        self.check()
        self.assertEqual(self.outcomes(), [("good", "passed"), ("last", "passed")])

    def test_without_a_gpu_it_says_so(self):
        (self.folder / "emulated").unlink()
        run = self.check()
        self.assertEqual(run.returncode, 2)
        self.assertRegex(run.stderr, "no NVIDIA driver|no program sees a GPU")
        (self.folder / "emulated").touch()
        self.pack("echo The cuda backend finds no GPU >&2; exit 1")
        (self.folder / "build").write_text("build-3\n")
        run = self.check()
        self.assertEqual(run.returncode, 2)
        self.assertIn("finds no GPU", run.stderr)
        self.assertIn("no program sees a GPU here", run.stderr)

    def test_a_wrong_command_line_is_refused(self):
        for arguments in (["--only", "nothing"], ["--time-limit", "x"], ["--what"]):
            self.assertEqual(self.check(*arguments).returncode, 2, arguments)

    def wait_for(self, condition):
        deadline = time.monotonic() + 20
        while not condition():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)

    def is_alive(self, group):
        try:
            os.killpg(group, 0)
            return True
        except ProcessLookupError:
            return False


if __name__ == "__main__":
    unittest.main()
