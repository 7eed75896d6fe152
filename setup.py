"""The compiled extensions; everything else about the build is in pyproject.toml."""

from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

COMPILE = ["-O3", "-std=gnu11", "-g0", "-Wall", "-Wextra", "-Wno-unused-function", "-fno-strict-aliasing"]


def extension(
    name: str, *c_sources: str, include_dirs: tuple[str, ...] = (), macros: tuple[str, ...] = ()
) -> Extension:
    """`qkdnode.native.<name>` from ext/<name>/<name>.pyx and the given C files."""
    return Extension(
        f"qkdnode.native.{name}",
        [f"ext/{name}/{name}.pyx", *c_sources],
        include_dirs=[f"ext/{name}", "ext/common", *include_dirs],
        define_macros=[(macro, "1") for macro in macros],
        extra_compile_args=COMPILE,
        depends=[
            header
            for place in (f"ext/{name}", "ext/common", *include_dirs)
            for header in glob(f"{place}/**/*.h", recursive=True)
        ],
    )


setup(
    ext_modules=cythonize(
        [
            extension("secret", "ext/secret/secret_memory.c"),
            extension("sifting", "ext/sifting/sift_window.c"),
            extension("cascade", "ext/cascade/cascade_role.c", "ext/cascade/draws.c", "ext/cascade/slices.c"),
            extension("packets", "ext/packets/packets_scan.c"),
            extension(
                "stub", *sorted(glob("firmware_stubs/*/*.c")), include_dirs=("firmware_stubs",), macros=("QMP_FAULTS",)
            ),
            extension("polyval", *sorted(glob("ext/polyval/polyval_*.c")), "ext/common/cpu.c"),
            extension("toeplitz", *sorted(glob("ext/toeplitz/toeplitz_*.c")), "ext/common/cpu.c"),
        ],
        include_path=["agent"],
        build_dir="build/cython",
        compiler_directives={
            "language_level": 3,
            "binding": True,
            "embedsignature": True,
            "boundscheck": False,
            "wraparound": False,
            "autotestdict": False,  # no __test__: there are no doctests, and type stubs would lack it
        },
    )
)
