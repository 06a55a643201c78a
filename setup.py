"""Builds every .pyx below the four packages; C goes to build/, the modules beside their sources.

BALLAST_CHECKED=1 builds the checked variant: bounds and overflow checks, assertions, address and undefined-behaviour sanitizers.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

CHECKED = os.environ.get("BALLAST_CHECKED") == "1"
# -ffp-contract=off: a fused multiply-add would make the kernel differ in the last bit from its twin and between machines.
FLAGS = ["-O2", "-g", "-ffp-contract=off", "-fno-math-errno", "-Wno-unused-function", "-Wno-unreachable-code"]
LINK: list[str] = []
if CHECKED:
    SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    FLAGS += ["-O1", "-g1", "-UNDEBUG", *SANITIZE]     # as gcc's manual advises, and it builds in half the time
    LINK += SANITIZE

ROOT = Path(__file__).parent
PACKAGES = os.environ.get("BALLAST_PACKAGES", "_core,hal,bench").split(",")     # a part of the build, for the checked variant
sources = sorted(p.relative_to(ROOT) for d in PACKAGES for p in (ROOT / d).rglob("*.pyx"))
extensions = [
    Extension(".".join(p.with_suffix("").parts), [str(p)], extra_compile_args=FLAGS, extra_link_args=LINK, libraries=["rt"])
    for p in sources
]
setup(
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
    ext_modules=cythonize(
        extensions,
        build_dir="build",
        nthreads=0,
        compiler_directives={
            "language_level": 3,
            # they cost nothing where it counts: the control thread indexes C pointers, these guard the Python faces
            "boundscheck": True,
            "wraparound": True,
            "initializedcheck": CHECKED,
            "cdivision": True,
            "embedsignature": True,
            "binding": True,
        },
    )
)
