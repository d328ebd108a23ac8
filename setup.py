"""Which packages are installed, and where: all but reloadlab in directories of its own (reloadlab/home.py says why)."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

PLACES = {
    "bpf": "reloadlab._packages.bpf",
    "datapath": "reloadlab._packages.datapath",
    "lab": "reloadlab._packages.lab",
    # Apart, because nothing imports it: a project may have a directory of that name, and often has.
    "scenarios": "reloadlab._suites.scenarios",
}


class BuildAnew(build_py):  # type: ignore[misc]
    """Without what an earlier build left: a module that has moved since would be installed at both places."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "reloadlab", ignore_errors=True)
        super().run()


setup(
    cmdclass={"build_py": BuildAnew},
    packages=[
        "reloadlab",
        *(
            place + package.removeprefix(name)
            for name, place in PLACES.items()
            for package in find_packages(include=[name, f"{name}.*"])
        ),
    ],
    package_dir={place: name for name, place in PLACES.items()},
    package_data={
        "reloadlab": ["py.typed"],
        PLACES["bpf"]: ["*.c", "*.h", "lib/*.h", "include/**/*.h", "LICENSE.*"],
        f"{PLACES['lab']}.box": ["init.sh"],
        f"{PLACES['lab']}.vm": ["init.sh"],
        f"{PLACES['lab']}.watch": ["*.c"],
        f"{PLACES['lab']}.loaders": ["cilium/*.go", "cilium/loader/*.go"],
        f"{PLACES['lab']}.report": ["page/*"],
        PLACES["scenarios"]: ["suite.ini"],
    },
)
