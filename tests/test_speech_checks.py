"""Keys `audio`: refused beside a model that reads text, and where they contradict each other."""

import pytest

from seq2seq_jax.config import check_config, default_config
from seq2seq_jax.errors import UserError
from seq2seq_jax.experiment import make_model
from seq2seq_jax.keys import DEFAULTS
from seq2seq_jax.model_keys import MODEL_KEYS
from seq2seq_jax.speech_checks import reads_speech, refuse_audio

AUDIO = DEFAULTS["audio"]
OTHERS = {str: "other", float: 0.5, int: 7, bool: True}


@pytest.mark.parametrize("key", sorted(AUDIO))
def test_every_key_of_audio_is_refused_beside_text(key):
    for name in MODEL_KEYS:
        config = default_config(name)
        refuse_audio(config, AUDIO)
        config.audio[key] = OTHERS[type(AUDIO[key])]
        if reads_speech(config.model):
            refuse_audio(config, AUDIO)
            continue
        rule = (
            rf"config\.audio\.{key} must be .* with config\.model\.name='{name}', but is .*: it is for models that hear"
        )
        with pytest.raises(UserError, match=rule) as caught:
            refuse_audio(config, AUDIO)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"low": 8000.0}, r"config\.audio\.low must be less than half of config\.audio\.rate=16000, but is 8000\.0"),
        ({"low": 300.0, "high": 300.0}, r"config\.audio\.high must be more than low=300\.0"),
        ({"high": 8001.0}, r"config\.audio\.high must be more than low=20\.0 and at most half of rate=16000"),
        ({"fft": 256}, r"config\.audio\.window must be at least hop=160 and at most fft=256, but is 400"),
        ({"hop": 0}, r"config\.audio\.hop must be at least 1, but is 0"),
        ({"preemphasis": 1.0}, r"config\.audio\.preemphasis must be at most 1 \(preemphasis: less\), but is 1\.0"),
    ],
)
def test_what_the_front_end_cannot_be_is_refused_by_its_key(changes, told):
    config = default_config("ctc")
    config.train.patience_metric, config.train.label_smoothing = "wer", 0.0
    check_config(config)
    config.audio.update(changes)
    with pytest.raises(UserError, match=told):
        check_config(config)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mels": 200}, "config.audio.mels must leave every filter a frequency of the transform, but "),
        ({"fft": 300}, "config.audio.fft must be at least config.audio.window (400), but is 300 instead."),
        ({"low": 900.0, "high": 800.0}, "config.audio.low and config.audio.high must be in order between 0 and half "),
        ({"hop": 0}, "config.audio.hop must be at least 1, but is 0 instead."),
        ({"log": "log2"}, "config.audio.log must be one of "),
    ],
)
def test_what_only_the_front_end_refuses_has_its_key_too(changes, told):
    config = default_config("ctc")
    config.audio.update(changes)
    with pytest.raises(UserError) as caught:
        make_model(config, 8, 8)
    assert str(caught.value).startswith(told) and "`" not in str(caught.value)
