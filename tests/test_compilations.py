"""Damaged entries of the compilation cache are removed when JAX meets one, told once, and written anew."""

import warnings

import jax
import jax.numpy as jnp
import pytest

from seq2seq_jax.compilations import heal_cache


@pytest.fixture
def cache(tmp_path):
    """A cache of its own for a test, where everything is kept."""
    from jax.experimental.compilation_cache import compilation_cache

    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (str(tmp_path), 0.0, -1), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compute():
    """Three programs, compiled or taken from the cache."""
    jax.clear_caches()
    x = jnp.arange(6.0)
    return [float(jax.jit(f)(x)) for f in (lambda x: (x * 3).sum(), lambda x: (x - 7).prod(), lambda x: x.max() / 9)]


def entries(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*-cache")}


@pytest.mark.parametrize("kind", ["truncated", "emptied", "flipped"])
def test_damaged_entries_are_told_once_and_heal(cache, capsys, kind):
    expected = compute()
    whole = entries(cache)
    assert len(whole) >= 3
    for name, content in whole.items():
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
        (cache / name).write_bytes({"truncated": content[:middle], "emptied": b"", "flipped": flipped}[kind])
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        heal_cache()
        heal_cache()
        assert compute() == expected
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1 and f"{len(whole)} damaged entries of the compilation cache in {cache}" in told[0]
        assert set(entries(cache)) == set(whole) and all(entries(cache).values())
        assert compute() == expected
        assert capsys.readouterr().err == ""


def test_other_warnings_are_shown_as_before(monkeypatch):
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *rest: shown.append(str(message)))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        heal_cache()
        warnings.warn("something else", UserWarning, stacklevel=1)
    assert shown == ["something else"]
