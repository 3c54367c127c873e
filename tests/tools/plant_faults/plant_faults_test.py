#!/usr/bin/env python3
"""Entries that fit the sources no more are named, and what is planted is taken back."""
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from unittest import mock

FOLDER = pathlib.Path(__file__).resolve().parents[3] / "tools" / "plant_faults"
sys.path.insert(0, str(FOLDER))
import plant_faults  # noqa: E402

ENTRY = """
[[fault]]
name = "{name}"
file = "{file}"
text = '{text}'
fault = '{fault}'
tests = ["{test}"]
"""


def entry(name="a", file="a.cc", text="x > 0", fault="x >= 0", test="a"):
    return ENTRY.format(name=name, file=file, text=text, fault=fault, test=test)


class PlantFaultsTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        (self.root / "tests").mkdir()
        (self.root / "tests" / "a_test.cc").touch()
        self.file = self.root / "a.cc"
        self.file.write_text("if (x > 0) y();\nif (z) y();\n")

    def problems(self, text):
        return list(plant_faults.problems(plant_faults.read_list(text), self.root))

    def test_the_committed_list_has_faults_of_every_folder(self):
        faults = plant_faults.read_list(plant_faults.LIST.read_text(encoding="utf-8"))
        self.assertGreaterEqual(len(faults), 40)
        folders = {fault.file.split("/")[0] for fault in faults}
        self.assertEqual(folders, {"attention_worker", "common", "deployment", "expert_worker",
                                   "gateway", "kernels", "scripts", "tools"})

    def test_names_every_entry_that_is_stale(self):
        self.assertEqual(self.problems(entry()), [])
        for text, why in [(entry(text="x < 0"), "occurs 0 times in a.cc"),
                          (entry(text="y();"), "occurs 2 times in a.cc"),
                          (entry(file="b.cc"), "no file b.cc"),
                          (entry(test="b"), "no test b"),
                          (entry(fault="x > 0"), "nothing changes"),
                          (entry() + entry(), "two entries")]:
            self.assertIn(why, " ".join(self.problems(text)))

    def test_refuses_an_entry_without_its_fields(self):
        with self.assertRaisesRegex(ValueError, "^a: .*'fault'"):
            plant_faults.read_list('[[fault]]\nname = "a"\nfile = "b"\ntext = "c"\n')
        with self.assertRaisesRegex(ValueError, "^a: .*colour"):
            plant_faults.read_list(entry() + 'colour = "red"\n')

    def test_takes_a_fault_back_whatever_happens(self):
        before = self.file.read_text()
        [fault] = plant_faults.read_list(entry())
        with self.assertRaises(KeyboardInterrupt):
            with plant_faults.Planted(fault, self.root):
                self.assertIn("x >= 0", self.file.read_text())
                raise KeyboardInterrupt
        self.assertEqual(self.file.read_text(), before)

    def test_the_copy_holds_what_git_knows_or_would_add_and_nothing_else(self):
        subprocess.run(["git", "init", "-q", self.root], check=True)
        (self.root / ".gitignore").write_text("/build/\n")
        copy = self.root / "build" / "plant"
        (copy / "build").mkdir(parents=True)
        (copy / "build" / "kept").touch()
        (copy / "stale.cc").touch()
        plant_faults.sync(self.root, copy)
        unchanged = (copy / "a.cc").stat().st_mtime_ns
        (copy / "tests" / "a_test.cc").write_text("left by a run that was killed")
        plant_faults.sync(self.root, copy)
        self.assertEqual((copy / "a.cc").read_bytes(), self.file.read_bytes())
        self.assertEqual((copy / "a.cc").stat().st_mtime_ns, unchanged)
        self.assertEqual((copy / "tests" / "a_test.cc").read_bytes(), b"")
        self.assertFalse((copy / "stale.cc").exists())
        self.assertTrue((copy / "build" / "kept").exists())

    def run_program(self, program, limit_s=20):
        test = plant_faults.Test("a")
        with mock.patch.object(plant_faults, "COPY", self.root), \
                mock.patch.object(plant_faults.Test, "command",
                                  lambda self: [sys.executable, "-c", program]):
            return plant_faults.run(test, limit_s)

    def test_a_test_fails_by_its_case_its_end_or_its_time(self):
        self.assertEqual(self.run_program("print('[  PASSED  ] 3 tests.')"), "")
        self.assertEqual(self.run_program("print('[  FAILED  ] A.B (1 ms)'); exit(1)"), "A.B")
        self.assertEqual(self.run_program("print('FAIL: test_a (b)'); exit(1)"), "test_a")
        self.assertEqual(self.run_program("import os; os.abort()"), "ended with -6")
        self.assertIn("longer", self.run_program("import time; time.sleep(60)", limit_s=0.2))
        self.assertEqual(self.run_program("print('[==========] Running 0 tests from 0 suites.')"),
                         "has no such case")

    def test_an_interrupted_command_leaves_nothing_that_runs(self):
        def interrupt(*unused):
            raise KeyboardInterrupt
        before = signal.signal(signal.SIGALRM, interrupt)
        self.addCleanup(signal.signal, signal.SIGALRM, before)
        read, write = os.pipe()
        os.set_inheritable(write, True)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with mock.patch.object(plant_faults, "COPY", self.root), \
                mock.patch.object(subprocess.Popen, "__init__", autospec=True,
                                  side_effect=self.keep_open(write)):
            with self.assertRaises(KeyboardInterrupt):
                plant_faults.execute(["sh", "-c", "sleep 60 & wait"])
        os.close(write)
        start = time.monotonic()
        self.assertEqual(os.read(read, 1), b"")  # once nobody holds the other end
        self.assertLess(time.monotonic() - start, 30)
        os.close(read)

    @staticmethod
    def keep_open(descriptor):
        init = subprocess.Popen.__init__
        return lambda self, *args, **kwargs: init(self, *args, pass_fds=[descriptor], **kwargs)


if __name__ == "__main__":
    unittest.main()
