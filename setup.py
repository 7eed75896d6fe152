"""The compiled extensions; everything else about the build is in pyproject.toml."""

from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

COMPILE = ["-O3", "-std=gnu11", "-g0", "-Wall", "-Wextra", "-Wno-unused-function", "-fno-strict-aliasing"]


def extension(name: str, *c_sources: str, include_dirs: tuple[str, ...] = ()) -> Extension:
    """`qkdnode.native.<name>` from ext/<name>/<name>.pyx and the given C files."""
    return Extension(
        f"qkdnode.native.{name}",
        [f"ext/{name}/{name}.pyx", *c_sources],
        include_dirs=[f"ext/{name}", "ext/common", *include_dirs],
        extra_compile_args=COMPILE,
        depends=glob(f"ext/{name}/*.h") + glob("ext/common/*.h"),
    )


setup(
    ext_modules=cythonize(
        [
            extension("secret", "ext/secret/secret_memory.c"),
            extension("polyval", *glob("ext/polyval/polyval_*.c"), "ext/common/cpu.c"),
            extension("toeplitz", *glob("ext/toeplitz/toeplitz_*.c"), "ext/common/cpu.c"),
        ],
        include_path=["agent"],
        build_dir="build/cython",
        compiler_directives={
            "language_level": 3,
            "binding": True,
            "embedsignature": True,
            "boundscheck": False,
            "wraparound": False,
        },
    )
)
