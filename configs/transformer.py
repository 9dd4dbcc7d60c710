"""The Transformer (Vaswani et al. 2017, arXiv 1706.03762).

    python -m seq2seq_jax.main --config=configs/transformer.py       the built-in corpus, minutes on two CPU cores
    python -m seq2seq_jax.main --config=configs/transformer.py:multi30k \
        --config.data.train=DIR/train --config.data.dev=DIR/val --config.data.test=DIR/test_2016_flickr
    python -m seq2seq_jax.main --config=configs/transformer.py:base --mode=prepare   WMT'14 of TFDS to tokens, once
    python -m seq2seq_jax.main --config=configs/transformer.py:base          or --config.data.train=DIR/train ...
    python -m seq2seq_jax.main --workdir=RUN --mode=average --last=5 --output=MEAN   and --workdir=MEAN --mode=evaluate

Other Transformers: --config.model.norm=pre, --config.model.positions=learned, relative or rotary,
--config.model.activation=gelu, swish or swiglu; short pairs in one row: --config.data.pack=True. Several devices:
--config.parallel.fsdp=8, or tensor=8, stage=8 (docs/sharding.md); deep models: --config.parallel.layers=scanned and
--config.parallel.remat=dots.

Presets:

- (none): 3+3 layers of width 128 on the phrasebook, English to German; Adam at 0.002 with 400 steps of warm-up.
- `small`: 2+2 layers of width 128 on a small corpus of words between blanks (tokenise it first): the data, the
  vocabulary and the search of `configs/lstm.py:small`, of which only the model differs (and the norm is "pre", so that
  it can be trained as the other models there are).
- `multi30k`: the tiny Transformer of Wu et al. 2021 (arXiv 2105.14462) for 29,000 pairs: 4+4 layers of width 128,
  feed-forward layers of 256, 4 heads, one table of 10,000 joint pieces (BPE), dropout 0.3; Adam at 0.005 with 2,000
  steps of warm-up, 8,000 updates of 4,096 source + 4,096 target slots; beam 5.
- `multi30k_cpu`: the same data and sizes in about an hour of one core: 8,000 updates of 1,024 + 1,024 slots, several
  pairs in a row, layers normalised first, dropout 0.15, Adam at 0.003 with a cosine. Layers normalised last learn far
  slower here: after 2,000 updates of twice as many slots they had 9 BLEU on dev, these 31. Test 2016 from English to
  German, lower-cased and tokenised: 39.16 BLEU (the best checkpoint of dev, beam 5); German to English 40.99 after
  5,000 updates, English to French 56.84 after 4,000.
- `base`, `big`: the paper's models for WMT'14 English to German, 63,119,496 and 214,282,376 parameters with one table
  of 37,000 joint pieces. Published BLEU on newstest2014: 27.3 (100,000 steps, 12 hours on eight P100) and 28.4
  (300,000 steps, 3.5 days). For English to French, 38.1 and 41.8: 32,000 pieces, dropout 0.1 in `big`.
- `deep_shallow`: `base` with 12 encoder layers and 1 decoder layer (Kasai et al. 2021, arXiv 2006.10369): nearly as
  good, and several times as quick to search with.

What the paper states, and the keys that hold it (`--mode=describe` counts without any data):

- 6+6 layers, D 512 (1024), F 2048 (4096), 8 (16) heads, dropout 0.1 (0.3): `model`. One table for both embeddings and
  the softmax, section 3.4: `model.share_embeddings=all`, `vocab.joint=True`, `vocab.size=37000`, BPE.
- About 25,000 source and 25,000 target tokens a batch, of similar length: `data.tokens_per_batch=50000` slots.
- Adam with beta2 0.98 and epsilon 1e-9; the rate rises for 4,000 steps and falls as n^-0.5 from then on, its peak
  (D 4000)^-0.5: `train.schedule=inverse_sqrt`. Label smoothing 0.1; gradients are not clipped.
- Base: the mean of the last 5 checkpoints, ten minutes apart; big: of 20: `--mode=average`, `train.keep_last`,
  `train.save_every`. Beam 4, length penalty 0.6, outputs of up to 50 tokens more than the input: `decode`.

What differs from the paper in `base` and `big`: SentencePiece BPE in the place of theirs (37,000 pieces with the
special ones); biases in the attention and in the softmax; all of TFDS's WMT'14, and of it what has up to 256 pieces a
side; bfloat16 in the products and between the layers.
"""

from ml_collections import ConfigDict

from seq2seq_jax.config import check_preset, default_config

PRESETS = ("", "small", "multi30k", "multi30k_cpu", "base", "big", "deep_shallow")


def get_config(preset: str = "") -> ConfigDict:
    """The config of a preset."""
    check_preset(preset, PRESETS, "configs/transformer.py")
    config = default_config("transformer")
    if preset == "":
        config.train.update(learning_rate=0.002, warmup_steps=400)
    elif preset == "small":
        set_small(config)
    elif preset in ("multi30k", "multi30k_cpu"):
        set_multi30k(config)
    else:
        set_base(config)
    if preset == "multi30k_cpu":
        config.data.update(tokens_per_batch=2048, pack=True)
        config.model.update(norm="pre", dropout=0.15)
        config.train.update(schedule="cosine", learning_rate=0.003, warmup_steps=400, decay_steps=8000)
        config.train.update(decay_floor=0.02, evaluate_every=2000, log_every=100)
    elif preset == "big":
        config.model.update(features=1024, feed_forward=4096, heads=16, dropout=0.3)
        config.train.update(steps=300_000, learning_rate=(1024 * 4000) ** -0.5, save_every=600, keep_last=20)
    elif preset == "deep_shallow":
        config.model.update(encoder_layers=12, decoder_layers=1)
    return config


def set_small(config: ConfigDict) -> None:
    """What `configs/lstm.py:small` is, with this model."""
    config.data.train = "train"  # a prefix to be named; dev and test are held out of it unless they are named, too
    config.data.update(tokens_per_batch=1024)
    config.vocab.update(kind="word", size=4000, joint=False)
    config.model.update(features=128, encoder_layers=2, decoder_layers=2, heads=4, feed_forward=256)
    config.model.update(norm="pre", share_embeddings="none", dropout=0.0)
    config.train.update(steps=3000, decay_steps=3000, warmup_steps=100, label_smoothing=0.0)
    config.train.update(save_every=500, evaluate_every=1000, patience_metric="loss")
    config.decode.update(beam_size=12, length_normalisation="none")
    config.evaluate.update(dev_sentences=100, samples=0)


def set_multi30k(config: ConfigDict) -> None:
    """Wu et al. 2021: the data is what is short, so the model is tiny and dropout high."""
    config.data.train = "train"  # a prefix to be named; dev and test are held out of it unless they are named, too
    config.data.update(tokens_per_batch=8192, max_shapes=12)
    config.vocab.update(size=10_000, model="bpe")
    config.model.update(features=128, encoder_layers=4, decoder_layers=4, heads=4, feed_forward=256, dropout=0.3)
    config.train.update(steps=8000, schedule="inverse_sqrt", learning_rate=0.005, warmup_steps=2000)
    config.train.update(b2=0.98, clip_norm=0.0, save_every=250, evaluate_every=500, keep_last=10)
    config.decode.beam_size = 5
    config.evaluate.dev_sentences = 0


def set_base(config: ConfigDict) -> None:
    """Vaswani et al. 2017, sections 3, 5 and 6.1: the base model for WMT'14 English to German."""
    wmt14 = "tfds:wmt14_translate/de-en"
    config.data.update(train=wmt14, dev=wmt14, test=wmt14)  # each its own split
    config.data.update(tokens_per_batch=50_000, max_shapes=16, max_source_len=256, max_target_len=256)
    config.vocab.update(size=37_000, model="bpe")
    config.model.update(features=512, encoder_layers=6, decoder_layers=6, heads=8, feed_forward=2048, dropout=0.1)
    config.model.dtype = "bfloat16"
    config.train.update(steps=100_000, schedule="inverse_sqrt", learning_rate=(512 * 4000) ** -0.5, warmup_steps=4000)
    config.train.update(b1=0.9, b2=0.98, eps=1e-9, clip_norm=0.0, label_smoothing=0.1)
    config.train.update(log_every=100, save_every=1500, evaluate_every=6000, keep_last=5)
    config.decode.update(preset="tensor2tensor", beam_size=4, length_factor=1.0, length_extra=50)
