#!/usr/bin/env python3
"""Makes the package `tandem` in a folder, importable without being installed.

    make_package.py FOLDER      # then PYTHONPATH=FOLDER python3 -c 'import tandem'

What is made of the proto is its descriptors alone, by protoc (Debian's protobuf-compiler) or by the
one in grpcio-tools. Unlike generated code they fit every version of protobuf and gRPC.
"""
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
SOURCE = HERE / "tandem"
PROTO = HERE.parents[1] / "proto" / "inference.proto"


def write_descriptors(package):
    arguments = [f"--proto_path={PROTO.parent}",
                 f"--descriptor_set_out={package / 'inference.binpb'}", str(PROTO)]
    protoc = shutil.which("protoc")
    command = [protoc] if protoc else [sys.executable, "-m", "grpc_tools.protoc"]
    if subprocess.run(command + arguments).returncode != 0:
        raise SystemExit("the proto is not compiled: install protobuf-compiler (Debian) or "
                         "grpcio-tools (PyPI)")


def make(folder):
    package = pathlib.Path(folder) / "tandem"
    package.mkdir(parents=True, exist_ok=True)
    for file in [*SOURCE.glob("*.py"), SOURCE / "py.typed"]:
        shutil.copyfile(file, package / file.name)
    write_descriptors(package)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    make(sys.argv[1])
