"""BERT (Devlin et al. 2019, arXiv 1810.04805): an encoder that learns from text alone, by filling what is hidden of it.

    python -m seq2seq_jax.main --config=configs/bert.py                        the built-in corpus, minutes on two cores
    python -m seq2seq_jax.main --config=configs/bert.py:multi30k --workdir=BERT \
        --config.data.train=DIR/train --config.data.dev=DIR/val --config.data.test=DIR/test_2016_flickr
    python -m seq2seq_jax.main --config=configs/transformer.py:multi30k --init_from=BERT --config.data.train=...

It reads the source side of a corpus, and nothing of its target (but pairs whose target is blank or longer than
`data.max_target_len` are left out). On text of one language, one file for both sides: `data.source` and `data.target`
equal. What it has learned is in its encoder: --init_from gives it to a Transformer of the same sizes (`features`,
`heads`, `feed_forward`, as many layers as `encoder_layers`, `norm`, `positions`, `activation`), with its vocabulary and
vectors; the decoder starts fresh. A vocabulary of one language is none for a translation: with
--config.vocab.from_init=False the Transformer has its own, and takes the vectors of all pieces that both have. With
--config.train.freeze=encoder,embedding the encoder then stays as it is. `experiments/low_resource` measures what it is
worth.

Its dev and test scores are the loss, the perplexity and the accuracy of hidden tokens, the same ones every time.
--mode=vectors writes the mean of the encoder's outputs for every line; it has no decoder for what needs a search.

Presets:

- (none): 4 layers of width 128 on the English of the phrasebook; several sentences in a row (`data.pack`).
- `multi30k`: the encoder of `configs/transformer.py:multi30k`: 4 layers of width 128, feed-forward layers of 256,
  post-norm, sinusoidal positions, relu, embeddings not normalised; 10,000 pieces (BPE).
- `multi30k_cpu`: the same for `configs/transformer.py:multi30k_cpu`: layers normalised first, 2,048 source slots a
  batch, 3,000 updates, Adam at 0.003 with a cosine: minutes on one core.
- `base`: the paper's base model, 12 layers of width 768: 109,512,762 parameters with its vocabulary of 30,522, and its
  optimizer: Adam at 0.0001 with 10,000 steps of warm-up and a linear decay to 1,000,000, weight decay 0.01, dropout
  0.1, 131,072 source slots a batch (256 sequences of 512). To be given a corpus (`data.train`), on accelerators.

Differs from the paper in `base`: no next-sentence task and no segment embeddings; every line of the corpus stands alone
in its segment of a packed row; SentencePiece in the place of WordPiece; dropout not on attention weights; parameters
are drawn from a uniform range of the same variance as the paper's normal; bfloat16 in the products.
"""

from ml_collections import ConfigDict

from seq2seq_jax.config import check_preset, default_config

PRESETS = ("", "multi30k", "multi30k_cpu", "base")


def get_config(preset: str = "") -> ConfigDict:
    """The config of a preset."""
    check_preset(preset, PRESETS, "configs/bert.py")
    config = default_config("bert")
    config.data.pack = True
    config.train.update(learning_rate=0.002, warmup_steps=400, label_smoothing=0.0, patience_metric="loss")
    if preset:
        config.data.train = "train"  # a prefix to be named; dev and test are held out of it unless they are named, too
    if preset in ("multi30k", "multi30k_cpu"):
        config.data.update(tokens_per_batch=8192)
        config.vocab.update(size=10_000, model="bpe")
        config.model.update(feed_forward=256, activation="relu", positions="sinusoidal", embedding_norm=False)
        config.train.update(steps=8000, decay_steps=8000, b2=0.98, save_every=500, evaluate_every=500)
    if preset == "multi30k_cpu":
        config.data.update(tokens_per_batch=4096)  # source and target slots, of which the target's are not read
        config.model.update(norm="pre")
        config.train.update(steps=3000, decay_steps=3000, decay_floor=0.02, learning_rate=0.003)
    elif preset == "base":
        config.data.update(tokens_per_batch=262_144, max_source_len=512, max_target_len=512)
        config.vocab.update(size=30_522)
        config.model.update(features=768, layers=12, heads=12, feed_forward=3072, init_scale=0.02 * 3**0.5)
        config.model.dtype = "bfloat16"
        config.train.update(optimizer="adamw", weight_decay=0.01, eps=1e-6, clip_norm=1.0, schedule="linear")
        config.train.update(learning_rate=1e-4, warmup_steps=10_000, steps=1_000_000, decay_steps=1_000_000)
        config.train.update(decay_floor=0.0, log_every=100, save_every=5000, evaluate_every=10_000)
    return config
