"""Log-mel features against a float64 transform written out, against librosa and torchaudio, and their normalisation."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seq2seq_jax.layers.frontend import Frontend, LogMel, cut_windows, log_mel, measure, mel_filters

PLAIN = Frontend(normalisation="none", preemphasis=0.0)
SMALL = Frontend(rate=800, hop=8, window=20, fft=32, mels=5, low=0.0, normalisation="none")
FRONTENDS = {
    "default": Frontend(normalisation="none"),
    "librosa": dataclasses.replace(PLAIN, window=512, mel_scale="slaney", log="log10", low=0.0),
    "whisper": dataclasses.replace(PLAIN, window=400, fft=400, mel_scale="slaney", log="whisper", low=0.0, high=8000.0),
    "small": SMALL,
    "odd window": dataclasses.replace(SMALL, window=21, fft=33, mels=4),
    "long hop": dataclasses.replace(SMALL, hop=50, log="log10"),
    "8 kHz": dataclasses.replace(PLAIN, rate=8000, hop=80, window=200, fft=256, mels=40, high=3800.0),
}
SAMPLES = (2400, 1000, 1)


def draw(frontend):
    """Recordings, and the batch of their frames with real-looking samples in the padding."""
    rng = np.random.default_rng(0)
    recordings = [rng.normal(0.0, 0.2, size) for size in SAMPLES]
    length = -(-max(SAMPLES) // frontend.hop) + 1
    batch = rng.normal(size=(len(SAMPLES), length * frontend.hop))
    mask = np.zeros((len(SAMPLES), length), bool)
    for row, samples in enumerate(recordings):
        frames = -(-len(samples) // frontend.hop)
        mask[row, :frames] = True
        batch[row, : frames * frontend.hop] = np.pad(samples, (0, frames * frontend.hop - len(samples)))
    frames = jnp.asarray(batch.reshape(len(SAMPLES), length, frontend.hop), jnp.float32)
    return recordings, frames, jnp.asarray(mask)


def find_filters(frontend):
    """The triangles, one number at a time."""

    def to_mel(f):
        if frontend.mel_scale == "htk":
            return 2595 * np.log10(1 + f / 700)
        return f / (200 / 3) if f < 1000 else 15 + np.log(f / 1000) / (np.log(6.4) / 27)

    # The scale is undone by bisection: no second formula that could be wrong in the same way.
    def to_hertz(mel):
        low, high = 0.0, frontend.rate
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if to_mel(middle) < mel else (low, middle)
        return low

    first, last = to_mel(frontend.low), to_mel(frontend.high or frontend.rate / 2)
    step = (last - first) / (frontend.mels + 1)
    corners = [to_hertz(first + n * step) for n in range(frontend.mels + 2)]
    filters = np.zeros((frontend.fft // 2 + 1, frontend.mels))
    for k, m in np.ndindex(*filters.shape):
        f, (left, top, right) = k * frontend.rate / frontend.fft, corners[m : m + 3]
        if left < f < right:
            filters[k, m] = (f - left) / (top - left) if f <= top else (right - f) / (right - top)
            filters[k, m] *= 2 / (right - left) if frontend.mel_scale == "slaney" else 1
    return filters


def find_features(frontend, samples):
    """Features of one recording, by the definition of each step."""
    hop, size = frontend.hop, frontend.fft
    samples = np.float64(np.float32(np.pad(samples, (0, -len(samples) % hop))))
    samples = samples - frontend.preemphasis * np.pad(samples, (1, 0))[:-1]
    times, bins = np.arange(frontend.window), np.arange(size // 2 + 1)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * times / frontend.window)
    wave = np.exp(-2j * np.pi * np.outer(times, bins) / size)
    first = (size - frontend.window) // 2 - size // 2  # of the window, before the frame's centre
    frames = []
    for s in range(len(samples) // hop):
        seen = np.array([samples[n] if 0 <= n < len(samples) else 0.0 for n in s * hop + first + times])
        frames.append(np.abs((seen * window) @ wave) ** 2)
    mels = np.maximum(np.array(frames) @ find_filters(frontend), 1e-10)
    if frontend.log == "ln":
        return np.log(mels)
    mels = np.log10(mels)
    return mels if frontend.log == "log10" else (np.maximum(mels, mels.max() - 8) + 4) / 4


@pytest.mark.parametrize("name", FRONTENDS)
def test_equals_the_definition(name):
    frontend = FRONTENDS[name]
    recordings, frames, mask = draw(frontend)
    found = jax.jit(log_mel, static_argnums=0)(frontend, frames, mask)
    assert (found.shape, found.dtype) == ((*mask.shape, frontend.mels), jnp.float32)
    for row, samples in enumerate(recordings):
        want = find_features(frontend, samples)
        np.testing.assert_allclose(found[row, : len(want)], want, atol=2e-3, rtol=1e-4)  # a weak bin after loud ones
        np.testing.assert_array_equal(found[row, len(want) :], 0.0)


@pytest.mark.parametrize("name", FRONTENDS)
def test_filters_are_triangles(name):
    np.testing.assert_allclose(mel_filters(FRONTENDS[name]), find_filters(FRONTENDS[name]), atol=1e-9)


def test_equals_librosa():
    librosa = pytest.importorskip("librosa", reason="librosa is not installed")
    frontend = FRONTENDS["librosa"]
    recordings, frames, mask = draw(frontend)
    found = log_mel(frontend, frames, mask)
    for row, samples in enumerate(recordings[:2]):
        mels = librosa.feature.melspectrogram(
            y=samples.astype(np.float32), sr=frontend.rate, n_fft=frontend.fft, hop_length=frontend.hop,
            n_mels=frontend.mels, center=True, pad_mode="constant", power=2.0,
        )  # fmt: skip
        want = np.log10(np.maximum(mels, 1e-10)).T[: mask[row].sum()]
        np.testing.assert_allclose(found[row, : len(want)], want, atol=1e-3)


def test_equals_torchaudio():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torchaudio = pytest.importorskip("torchaudio", reason="torchaudio is not installed")
    recordings, frames, mask = draw(PLAIN)
    found = log_mel(PLAIN, frames, mask)
    transform = torchaudio.transforms.MelSpectrogram(
        sample_rate=PLAIN.rate, n_fft=PLAIN.fft, win_length=PLAIN.window, hop_length=PLAIN.hop, f_min=PLAIN.low,
        n_mels=PLAIN.mels, center=True, pad_mode="constant", power=2.0,
    )  # fmt: skip
    for row, samples in enumerate(recordings[:2]):
        mels = transform(torch.from_numpy(samples.astype(np.float32)))
        want = np.log(np.maximum(mels.numpy(), 1e-10)).T[: mask[row].sum()]
        np.testing.assert_allclose(found[row, : len(want)], want, atol=1e-3)


def test_windows_are_centred():
    """Frame s holds the samples around s * hop, and nothing of what lies beyond both ends."""
    frames = jnp.arange(1.0, 49.0).reshape(1, 6, 8)
    windows = np.asarray(cut_windows(SMALL, frames))[0]
    assert windows.shape == (6, 32)
    for s in range(6):
        want = [n + 1 if 0 <= n < 48 else 0 for n in range(8 * s - 16, 8 * s + 16)]
        np.testing.assert_array_equal(windows[s], want)


@pytest.mark.parametrize("normalisation", ["utterance", "global", "none"])
def test_padding_changes_nothing(normalisation):
    frontend = dataclasses.replace(SMALL, normalisation=normalisation, log="whisper")
    _, frames, mask = draw(frontend)
    params = {"params": {"mean": jnp.arange(5.0), "scale": jnp.arange(1.0, 6.0)}} if normalisation == "global" else {}
    apply = jax.jit(LogMel(frontend).apply)
    narrow = apply(params, frames, mask)
    wide = apply(
        params, jnp.pad(frames, ((0, 1), (0, 9), (0, 0)), constant_values=3.0), jnp.pad(mask, ((0, 1), (0, 9)))
    )
    np.testing.assert_allclose(wide[:3, : mask.shape[1]], narrow, atol=1e-6)
    np.testing.assert_array_equal(wide[3], 0.0)
    np.testing.assert_array_equal(wide[:, mask.shape[1] :], 0.0)


def test_utterances_have_mean_zero_and_variance_one():
    frontend = dataclasses.replace(SMALL, normalisation="utterance")
    _, frames, mask = draw(frontend)
    features, real = np.asarray(LogMel(frontend).apply({}, frames, mask), np.float64), np.asarray(mask)
    for row in range(2):
        np.testing.assert_allclose(features[row, real[row]].mean(0), 0.0, atol=1e-5)
        np.testing.assert_allclose(features[row, real[row]].std(0), 1.0, atol=1e-4)
    np.testing.assert_array_equal(features[2], 0.0)  # one frame is its own mean


def test_global_normalisation_is_measured_and_never_trained():
    _, frames, mask = draw(SMALL)
    raw = log_mel(SMALL, frames, mask)
    mean, scale = measure([(raw[:1], mask[:1]), (raw[1:], mask[1:])])
    module = LogMel(dataclasses.replace(SMALL, normalisation="global"))
    params = {"mean": jnp.asarray(mean), "scale": jnp.asarray(scale)}
    made = np.asarray(module.apply({"params": params}, frames, mask), np.float64)[np.asarray(mask)]
    np.testing.assert_allclose(made.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(made.std(0), 1.0, atol=1e-4)
    gradients = jax.grad(lambda params: jnp.sum(module.apply({"params": params}, frames, mask) ** 2))(params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradients))
    with pytest.raises(ValueError, match="must have a frame"):
        measure([(raw, np.zeros_like(mask))])


def test_silence_is_finite():
    for name in ("default", "whisper"):
        frontend = FRONTENDS[name]
        made = LogMel(dataclasses.replace(frontend, normalisation="utterance")).apply(
            {}, jnp.zeros((2, 5, frontend.hop)), jnp.array([[True] * 5, [False] * 5])
        )
        assert np.isfinite(made).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mel_scale": "bark"}, "`mel_scale` must be one of"),
        ({"log": "log2"}, "`log` must be one of"),
        ({"normalisation": "batch"}, "`normalisation` must be one of"),
        ({"hop": 0}, "`hop` must be at least 1"),
        ({"fft": 256}, r"`fft` must be at least `window` \(400\), but is 256"),
        ({"high": 9000.0}, "half of `rate`"),
        ({"low": 4000.0, "high": 300.0}, "`low` and `high` must be in order"),
        ({"preemphasis": 1.0}, "`preemphasis` must be in"),
        ({"mels": 200}, "must leave every filter a frequency"),
    ],
)
def test_settings_that_cannot_be_say_so(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Frontend(), **changes)


def test_other_frames_are_refused():
    with pytest.raises(ValueError, match="frames must have `hop` = 8 samples, but have 9"):
        log_mel(SMALL, jnp.zeros((1, 2, 9)), jnp.ones((1, 2), bool))
