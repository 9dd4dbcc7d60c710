"""Pictures of what a recogniser heard: the spectrogram, where it listened, and when the words were said."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from seq2seq_jax.data.audio import read_clip, to_frames
from seq2seq_jax.data.vocab import EOS_ID
from seq2seq_jax.errors import UserError
from seq2seq_jax.evaluate.spectrograms import save_spectrogram
from seq2seq_jax.experiment import Experiment
from seq2seq_jax.layers.frontend import log_mel
from seq2seq_jax.serve.subtitles import join_words
from seq2seq_jax.speech_experiment import make_frontend
from seq2seq_jax.tasks.recogniser import Recognition


def save_picture(path: Path, experiment: Experiment, clip: str, found: Recognition) -> bool:
    """Draws the log-mel spectrogram of a clip with the attention and the words of its best candidate.

    Returns:
        Whether there is a picture: a clip that cannot be read has none.
    """
    audio, vocab = experiment.config.audio, experiment.vocabs.target
    try:
        frames = to_frames(read_clip(clip, rate=audio.rate), hop=audio.hop)[: found.frames]
    except UserError:
        return False
    if not len(frames):
        return False
    mask = jnp.ones((1, len(frames)), bool)
    features = np.asarray(log_mel(make_frontend(experiment.config), jnp.asarray(frames)[None], mask)[0])
    tokens = found.candidates[0].tokens if found.candidates else []
    borders = []
    if found.times is not None:
        spoken = [token for token in tokens if token != EOS_ID]
        words = join_words(spoken, found.times.tolist(), decode=vocab.decode)
        borders = [(word.text, word.start, word.end) for word in words]
    save_spectrogram(
        path,
        features,
        frame_s=audio.hop / audio.rate,
        attention=found.attention,
        pieces=vocab.pieces(tokens) if found.attention is not None else (),
        reduction=experiment.config.model.reduction,
        borders=borders,
        title=f"{Path(clip).name}: {found.text}",
    )
    return True
