"""Which packages are installed, and where: all but reloadlab in directories of its own (reloadlab/home.py says why)."""

from setuptools import find_packages, setup

PLACES = {
    "bpf": "reloadlab._packages.bpf",
    "datapath": "reloadlab._packages.datapath",
    "lab": "reloadlab._packages.lab",
    # Apart, because nothing imports it: a project may have a directory of that name, and often has.
    "scenarios": "reloadlab._suites.scenarios",
}

setup(
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
        PLACES["scenarios"]: ["suite.ini"],
    },
)
