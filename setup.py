"""Which packages are installed, and where: all but reloadlab in a directory of its own (reloadlab/home.py says why)."""

from setuptools import find_packages, setup

BEHIND = ("bpf", "datapath", "lab", "scenarios")
PLACE = "reloadlab._packages"

found = find_packages(include=[pattern for name in BEHIND for pattern in (name, f"{name}.*")])
setup(
    packages=["reloadlab", *(f"{PLACE}.{name}" for name in found)],
    package_dir={f"{PLACE}.{name}": name for name in BEHIND},
    package_data={
        "reloadlab": ["py.typed"],
        f"{PLACE}.bpf": ["*.c", "*.h", "lib/*.h", "include/**/*.h", "LICENSE.*"],
        f"{PLACE}.scenarios": ["suite.ini"],
    },
)
