"""What every test runs under: eight devices made of one CPU, shapes checked, random cases that repeat.

The environment is set before anything imports jax, and only where it is not set already, so that
`JAX_PLATFORMS=cuda python -m pytest` runs the same tests on an accelerator. Processes that a test
starts inherit it.
"""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
DEVICES_FLAG = "--xla_force_host_platform_device_count"
MOST_MAPPINGS = 10_000
SHAPE_ANNOTATION = re.compile(r"\b(Array|ArrayLike|Shaped|Num|Real|Inexact|Float\w*|Complex\w*|U?Int\w*|Bool|Key)\[")


def set_environment() -> None:
    """Makes eight CPU devices, and keeps compiled programs for the next run."""
    environ = os.environ
    environ.setdefault("JAX_PLATFORMS", "cpu")
    if DEVICES_FLAG not in environ.get("XLA_FLAGS", ""):
        environ["XLA_FLAGS"] = f"{environ.get('XLA_FLAGS', '')} {DEVICES_FLAG}=8".strip()
    # With fewer threads than devices a collective on a busy machine waits for a thread that never
    # comes, and XLA aborts the process after 40 seconds.
    environ.setdefault("PJRT_NPROC", "16")
    environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax_compilations"))
    environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    environ.setdefault("MPLBACKEND", "agg")


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function check the shapes that its annotations state: the letters must agree.

    Functions that state none are left alone. So are the constructors of dataclasses: as pytrees they
    also carry tracers, shapes and shardings in the place of arrays.
    """
    from beartype import BeartypeConf, beartype

    stated = " ".join(str(annotation) for annotation in getattr(function, "__annotations__", {}).values())
    if function.__name__ == "__init__" or not SHAPE_ANNOTATION.search(stated):
        return function
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)


def install_shape_checks() -> None:
    """From here on every module of the parts that compute is imported with `check_shapes` around its functions.

    `data` is left out: jaxtyping slows every call a little, and a grammar makes millions of them.
    """
    from jaxtyping import install_import_hook

    parts = ("layers", "models", "parallel", "train", "decode", "tasks")
    install_import_hook([f"seq2seq_jax.{part}" for part in parts], f"{__name__}.{check_shapes.__name__}")


def make_random_cases_repeat() -> None:
    """Hypothesis draws the same few cases in every run, and no clock fails a test.

    `SEQ2SEQ_JAX_EXAMPLES=2000` draws so many, and others with another `--hypothesis-seed`.
    """
    from hypothesis import HealthCheck, settings

    count = int(os.environ.get("SEQ2SEQ_JAX_EXAMPLES", "0"))
    settings.register_profile(
        "repeatable",
        derandomize=not count,
        database=None,
        max_examples=count or 100,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("repeatable")


set_environment()
install_shape_checks()
make_random_cases_repeat()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of public data that `SEQ2SEQ_JAX_DATA` names; without it the test is skipped."""
    name = os.environ.get("SEQ2SEQ_JAX_DATA")
    if not name:
        pytest.skip("SEQ2SEQ_JAX_DATA names no folder of public data")
    folder = Path(name)
    if not folder.is_dir():
        pytest.fail(f"SEQ2SEQ_JAX_DATA must name a folder, but is {name!r}: unset it to skip the tests that read it")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _let_go_of_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Forgets compiled programs after a module, where there are many: each has dozens of mappings in memory, of which
    Linux allows a process 65,530; beyond that XLA crashes."""
    yield
    if count_mappings() > MOST_MAPPINGS:
        import jax

        for made in vars(request.module).values():
            if hasattr(made, "cache_clear"):
                made.cache_clear()
        jax.clear_caches()
        gc.collect()


def count_mappings() -> int:
    """Of this process; 0 where the system does not tell."""
    maps = Path("/proc/self/maps")
    return len(maps.read_bytes().splitlines()) if maps.exists() else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first: with several processes none of them is left to wait for one that began last."""
    items.sort(key=lambda item: "slow" not in item.keywords)
