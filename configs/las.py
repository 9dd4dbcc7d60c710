"""Listen, Attend and Spell (Chan et al. 2016, arXiv 1508.01211): speech recognition by attention.

    python -m seq2seq_jax.main --config=configs/las.py                  built-in speech, minutes on two CPU cores
    python -m seq2seq_jax.main --config=configs/las.py:an4 \
        --config.data.train=DIR/train.tsv --config.data.dev=DIR/dev.tsv --config.data.test=DIR/test.tsv
    python -m seq2seq_jax.main --config=configs/las.py:librispeech \
        --config.data.train=LibriSpeech/train-clean-100,LibriSpeech/train-clean-360,LibriSpeech/train-other-500 \
        --config.data.dev=LibriSpeech/dev-clean --config.data.test=LibriSpeech/test-clean,LibriSpeech/test-other
    python -m seq2seq_jax.main --workdir=runs/las --mode=transcribe --input=my.wav

Needs the extra: pip install 'seq2seq_jax[speech]'. Own speech: a manifest (TSV or JSON Lines: audio file, text), or a
folder as LibriSpeech unpacks; docs/speech.md.

Presets:

- (none): two convolutions, two bidirectional layers of 256 and a speller of 192 on the built-in speech (sentences of
  the phrasebook, spoken by a synthesiser), characters; trained and searched jointly with CTC, and searched
  with an 8-gram model of the training's transcripts, too.
- `an4`: for a corpus of an hour, as CMU's AN4: joint CTC, three speeds; SpecAugment by `--config.audio.augment=own`.
- `paper`: Chan et al. 2016, section 4: a pyramid of one bidirectional layer and three that halve the length, 256 a
  direction; a speller of two layers of 512; content attention; characters; a tenth of the inputs of the speller are its
  own predictions; gradient descent at 0.2, uniform initialisation in [-0.1, 0.1], batches of 32 utterances, beam 32.
  Published on 3 million utterances of voice search: 14.1 WER, 10.3 rescored with a language model.
- `librispeech`: LAS-6-1280 of Park et al. 2019 (SpecAugment, 1904.08779) with policy LD: two convolutions, six
  bidirectional layers of 1280 together, a speller of two layers of 1280, 16,000 word pieces, label smoothing 0.1,
  Adam at 0.001: ramped up to step 1,000, held until step 40,000, decayed exponentially to a hundredth at step 160,000.
  Published without a language model: 2.8 / 6.8 WER.

Differs from the papers: in `paper`, one synchronous step instead of asynchronous replicas, additive attention, and the
own predictions come from one parallel pass (train.own_tokens_passes). In `librispeech`, no variational weight noise,
dropout 0.1 instead; SentencePiece; bfloat16 in the products; 80 mels without deltas.
"""

from ml_collections import ConfigDict

from seq2seq_jax.config import check_preset, default_config

PRESETS = ("", "an4", "paper", "librispeech")


def get_config(preset: str = "") -> ConfigDict:
    """The config of a preset."""
    check_preset(preset, PRESETS, "configs/las.py")
    config = default_config("las")
    set_speech(config)
    if preset == "an4":
        set_an4(config)
    elif preset == "paper":
        set_paper(config)
    elif preset == "librispeech":
        set_librispeech(config)
    else:
        set_joint(config)
        set_spoken(config)
        config.model.update(listener_layers=2, listener_features=256, channels=16, features=192)
        config.decode.update(ngram="auto", ngram_order=8, ngram_weight=0.3)
    return config


def set_speech(config: ConfigDict) -> None:
    """What all recognisers have in common: sizes are in frames of 10 ms, and tokens are characters."""
    config.data.update(source="speech", target="en", tokens_per_batch=8192, max_shapes=5)
    config.data.update(max_source_len=800, max_target_len=200)
    config.vocab.update(kind="char", size=100, normalization="nmt_nfkc_cf")
    config.train.update(patience_metric="wer", learning_rate=0.002, warmup_steps=200, label_smoothing=0.1)
    config.decode.update(length_factor=0.4, length_extra=10, max_source_len=3000, rows=32, beam_size=8)
    config.decode.update(coverage_penalty=0.0, length_penalty=0.0)
    config.evaluate.dev_sentences = 100


def set_spoken(config: ConfigDict) -> None:
    """The built-in speech: short sentences, so many small batches, and little is hidden of them."""
    config.data.update(tokens_per_batch=4096, max_source_len=400, max_target_len=80)
    config.audio.update(augment="own", freq_masks=1, freq_width=15, time_masks=1, time_width=15, time_share=0.2)
    config.train.update(learning_rate=0.003, steps=4500, decay_steps=4500, decay_floor=0.01)
    config.train.update(save_every=500, evaluate_every=500)


def set_joint(config: ConfigDict) -> None:
    """Joint CTC and attention (Watanabe et al. 2017), in training and in search."""
    config.model.ctc_head = True
    config.audio.ctc_weight = 0.5
    config.decode.ctc_weight = 0.6


def set_an4(config: ConfigDict) -> None:
    """Less than an hour of speech: the data is what is short."""
    set_joint(config)
    config.data.train = "train.tsv"  # a manifest to be named; dev and test are held out of it unless they are, too
    config.data.update(max_source_len=850, max_target_len=150)
    config.model.update(listener_layers=3, listener_features=320, features=256, dropout=0.2)
    # Masks for those who train longer (augment="own"): in 2,000 steps CTC with them gets to 34 WER, without to 23.
    config.audio.update(time_warp=5, freq_width=20, time_width=40, time_share=0.2)
    config.audio.update(speeds="0.9,1.0,1.1")
    config.train.update(steps=2000, decay_steps=2000, save_every=200, evaluate_every=200)
    config.evaluate.dev_sentences = 0


def set_paper(config: ConfigDict) -> None:
    """Chan et al. 2016, sections 3 and 4."""
    config.data.update(train="train.tsv", sentences_per_batch=32, max_shapes=8, max_source_len=1600, max_target_len=400)
    config.audio.update(mels=40, normalisation="global")
    config.model.update(subsample="pyramid", reduction=8, listener_layers=4, listener_features=512)
    config.model.update(features=512, speller_layers=2, attention="content", dropout=0.0, init_scale=0.1)
    config.train.update(optimizer="sgd", learning_rate=0.2, schedule="exponential", decay_floor=0.01, warmup_steps=0)
    config.train.update(steps=1_000_000, decay_steps=1_000_000, label_smoothing=0.0, own_tokens=0.1, own_tokens_steps=1)
    config.train.update(log_every=100, save_every=5000, evaluate_every=10_000)
    config.decode.beam_size = 32


def set_librispeech(config: ConfigDict) -> None:
    """Park et al. 2019, sections 3 to 5: LAS-6-1280 with SpecAugment LD and the long schedule."""
    config.data.update(
        train="train-clean-100", tokens_per_batch=524_288, max_source_len=2000, max_target_len=400, max_shapes=10
    )
    config.vocab.update(kind="sentencepiece", size=16_000)
    config.audio.update(augment="LD")
    config.model.update(listener_layers=6, listener_features=1280, features=1280, speller_layers=2)
    config.model.update(attention="content", attention_features=1280, dropout=0.1, dtype="bfloat16")
    config.train.update(optimizer="adam", learning_rate=0.001, warmup_steps=1000, label_smoothing=0.1, clip_norm=1.0)
    config.train.update(schedule="stable", decay_start=40_000, decay_steps=160_000, decay_floor=0.01, steps=320_000)
    config.train.update(ema_decay=0.9999, log_every=100, save_every=2000, evaluate_every=5000)
    config.evaluate.dev_sentences = 500
