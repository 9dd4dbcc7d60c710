"""CTC (Graves et al. 2006): speech recognition that labels frames, without a decoder.

    python -m seq2seq_jax.main --config=configs/ctc.py                  built-in speech, minutes on two CPU cores
    python -m seq2seq_jax.main --config=configs/ctc.py:an4 \
        --config.data.train=DIR/train.tsv --config.data.dev=DIR/dev.tsv --config.data.test=DIR/test.tsv
    python -m seq2seq_jax.main --config=configs/ctc.py:conformer --config.data.train=LibriSpeech/train-clean-100 ...
    python -m seq2seq_jax.main --workdir=runs/ctc --mode=transcribe --input=my.wav --format=srt

Needs the extra: pip install 'seq2seq_jax[speech]'. Own speech: a manifest (TSV or JSON Lines: audio file, text), or a
folder as LibriSpeech unpacks; docs/speech.md. Searched by the best path (decode.method=greedy), prefix beam search
("prefix_beam", frame by frame) or token by token ("beam"), where language models and n-grams take part.

Presets:

- (none): two convolutions and two bidirectional layers of 256 on the built-in speech, characters, searched together
  with an 8-gram model of the training's transcripts.
- `an4`: for a corpus of an hour, as CMU's AN4: three speeds; SpecAugment by `--config.audio.augment=own`.
- `conformer`: Conformer S of Gulati et al. 2020 (arXiv 2005.08100) with a CTC head: 16 layers of 144, 4 heads, kernel
  31 (the paper's is 32: here as many frames on both sides), 1,024 word pieces, SpecAugment LD; for LibriSpeech.
"""

from ml_collections import ConfigDict

from seq2seq_jax.config import check_preset, default_config

PRESETS = ("", "an4", "conformer")


def get_config(preset: str = "") -> ConfigDict:
    """The config of a preset."""
    check_preset(preset, PRESETS, "configs/ctc.py")
    config = default_config("ctc")
    set_speech(config)
    if preset == "an4":
        set_an4(config)
    elif preset == "conformer":
        set_conformer(config)
    else:
        set_spoken(config)
        config.model.update(listener_layers=2, listener_features=256, channels=16)
        config.decode.update(method="beam", beam_size=8, ngram="auto", ngram_order=8, ngram_weight=0.4)
    return config


def set_speech(config: ConfigDict) -> None:
    """What all recognisers have in common: sizes are in frames of 10 ms, and tokens are characters."""
    config.data.update(source="speech", target="en", tokens_per_batch=8192, max_shapes=5)
    config.data.update(max_source_len=800, max_target_len=200)
    config.vocab.update(kind="char", size=100, normalization="nmt_nfkc_cf")
    config.train.update(patience_metric="wer", learning_rate=0.002, warmup_steps=200, label_smoothing=0.0)
    config.decode.update(method="prefix_beam", length_factor=0.4, length_extra=10, max_source_len=3000, rows=32)
    config.decode.update(coverage_penalty=0.0, length_penalty=0.0)
    config.evaluate.dev_sentences = 100


def set_spoken(config: ConfigDict) -> None:
    """The built-in speech: short sentences, so many small batches, and little is hidden of them."""
    config.data.update(tokens_per_batch=4096, max_source_len=400, max_target_len=80)
    config.audio.update(augment="own", freq_masks=1, freq_width=15, time_masks=1, time_width=15, time_share=0.2)
    config.train.update(learning_rate=0.003, steps=4500, decay_steps=4500, decay_floor=0.01)
    config.train.update(save_every=500, evaluate_every=500)


def set_an4(config: ConfigDict) -> None:
    """Less than an hour of speech: the data is what is short."""
    config.data.train = "train.tsv"  # a manifest to be named; dev and test are held out of it unless they are, too
    config.data.update(max_source_len=850, max_target_len=150)
    config.model.update(listener_layers=3, listener_features=320, dropout=0.2)
    # Masks for those who train longer (augment="own"): in 2,000 steps CTC with them gets to 34 WER, without to 23.
    config.audio.update(time_warp=5, freq_width=20, time_width=40, time_share=0.2)
    config.audio.speeds = "0.9,1.0,1.1"
    config.train.update(steps=2000, decay_steps=2000, save_every=200, evaluate_every=200)
    config.evaluate.dev_sentences = 0


def set_conformer(config: ConfigDict) -> None:
    """Gulati et al. 2020, table 1, the small one; its transducer is a CTC head here."""
    config.data.update(
        train="train-clean-100", tokens_per_batch=262_144, max_source_len=2000, max_target_len=400, max_shapes=10
    )
    config.vocab.update(kind="sentencepiece", size=1024)
    config.audio.update(augment="LD", time_share=0.05)
    config.model.update(listener="conformer", listener_layers=16, listener_features=144, heads=4, feed_forward=576)
    config.model.update(kernel=31, channels=144, dropout=0.1, dtype="bfloat16")
    config.train.update(b2=0.98, eps=1e-9, schedule="inverse_sqrt", warmup_steps=10_000, learning_rate=0.004)
    config.train.update(optimizer="adamw", weight_decay=1e-6, steps=200_000, ema_decay=0.9999)
    config.train.update(log_every=100, save_every=2000, evaluate_every=5000)
    config.evaluate.dev_sentences = 500
