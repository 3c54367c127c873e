"""Adds tandem/inference.binpb, which is made of the public proto, to what is built."""
import pathlib
import sys

from setuptools import setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import make_package  # noqa: E402


class BuildWithProto(build_py):
    def run(self):
        super().run()
        package = pathlib.Path(self.build_lib) / "tandem"
        if self.editable_mode:
            package = make_package.SOURCE
        package.mkdir(parents=True, exist_ok=True)
        make_package.write_descriptors(package)


setup(cmdclass={"build_py": BuildWithProto})
