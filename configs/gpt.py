"""GPT (Radford et al. 2018, 2019): one stack of a Transformer's layers, which reads the source and goes on with the
target, as Wang et al. 2021 (arXiv 2107.01499) translate.

    python -m seq2seq_jax.main --config=configs/gpt.py                         the built-in corpus, minutes on two cores
    python -m seq2seq_jax.main --config=configs/gpt.py --config.model.prefix=full      the source is seen both ways
    python -m seq2seq_jax.main --config=configs/gpt.py:multi30k \
        --config.data.train=DIR/train --config.data.dev=DIR/val --config.data.test=DIR/test_2016_flickr
    python -m seq2seq_jax.main --config=configs/gpt.py:language_model          a language model of the target side

Presets:

- (none): 6 layers of width 128 on the phrasebook, English to German; several pairs in a row (`data.pack`), so that
  little of a batch is padding.
- `multi30k`: 8 layers of width 128 for 29,000 pairs, with what `configs/transformer.py:multi30k` trains with.
- `language_model`: reads nothing of its source (`model.source=False`). It goes beside a translation model of the same
  vocabulary, as `configs/language_model.py` tells: `decode.language_model=RUN` fuses it into a search, and
  --mode=rescore takes it among its models: with a model of the other direction (--channel=RUN) that is a noisy channel
  (Yee et al. 2019, arXiv 1908.05731). On text of one language, one file for both sides: `data.source` and
  `data.target` equal.
- `gpt2`: the sizes of the smallest GPT-2 (12 layers of width 768, 124 million parameters with its 50,257 pieces) as a
  language model, with the optimizer of Radford et al. 2018: Adam at 0.00025 with 2,000 steps of warm-up and a cosine,
  weight decay 0.01. To be given a corpus (`data.train`), on accelerators.

Differs from the papers: every sentence stands alone (theirs read 512 or 1,024 tokens of running text), SentencePiece in
the place of byte-level BPE, no dropout on attention weights; parameters of `gpt2` are drawn from a uniform range of the
same variance as the paper's normal.
"""

from ml_collections import ConfigDict

from seq2seq_jax.config import check_preset, default_config

PRESETS = ("", "multi30k", "language_model", "gpt2")


def get_config(preset: str = "") -> ConfigDict:
    """The config of a preset."""
    check_preset(preset, PRESETS, "configs/gpt.py")
    config = default_config("gpt")
    config.data.pack = True
    config.train.update(learning_rate=0.002, warmup_steps=400)
    if preset == "multi30k":
        config.data.train = "train"  # a prefix to be named; dev and test are held out of it unless they are named, too
        config.data.update(tokens_per_batch=8192)
        config.vocab.update(size=10_000, model="bpe")
        config.model.update(layers=8, feed_forward=256, dropout=0.3)
        config.train.update(steps=8000, schedule="inverse_sqrt", learning_rate=0.005, warmup_steps=2000)
        config.train.update(b2=0.98, clip_norm=0.0, save_every=250, evaluate_every=500, keep_last=10)
        config.evaluate.dev_sentences = 0
    elif preset in ("language_model", "gpt2"):
        config.model.source = False
        config.train.update(patience_metric="loss", label_smoothing=0.0)
        config.evaluate.update(dev_sentences=1, samples=0)  # what it says by itself is no translation
        config.decode.update(beam_size=1, length_extra=1, length_factor=1.0)
    if preset == "gpt2":
        config.data.update(train="train", tokens_per_batch=65_536, max_source_len=512, max_target_len=512)
        config.vocab.update(size=50_257, model="bpe", byte_fallback=True)
        config.model.update(features=768, layers=12, heads=12, feed_forward=3072, init_scale=0.02 * 3**0.5)
        config.model.dtype = "bfloat16"
        config.train.update(optimizer="adamw", weight_decay=0.01, learning_rate=0.00025, warmup_steps=2000)
        config.train.update(steps=100_000, decay_steps=100_000, decay_floor=0.0, clip_norm=1.0, save_every=1000)
        config.train.evaluate_every = 5000
    return config
