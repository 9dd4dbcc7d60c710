"""GNMT: Google's Neural Machine Translation system (Wu et al. 2016, arXiv 1609.08144).

    python -m seq2seq_jax.main --config=configs/gnmt.py              the built-in corpus, minutes on two CPU cores
    python -m seq2seq_jax.main --config=configs/gnmt.py:multi30k \
        --config.data.train=DIR/train --config.data.dev=DIR/val --config.data.test=DIR/test_2016_flickr
    python -m seq2seq_jax.main --config=configs/gnmt.py:paper --mode=prepare      WMT'14 of TFDS to tokens, once
    python -m seq2seq_jax.main --config=configs/gnmt.py:paper                     or --config.data.train=DIR/train ...

Own text, two files `my/text.en` and `my/text.de`:

    python -m seq2seq_jax.main --config=configs/gnmt.py:multi30k --config.data.train=my/text \
        --config.data.source=en --config.data.target=de

Other recurrent layers (docs/recurrent.md): --config.model.cell=gru or lstm_peephole, --config.model.cells=WIDTH (with a
projection), --config.model.layer_norm=True, --config.model.recurrent_dropout=0.2.

Presets:

- (none): 2+2 layers of width 128 on the phrasebook, English to German: 78.3 BLEU in five minutes on two CPU cores.
- `multi30k`: 2+2 layers of width 256 for a small corpus of real text (29,000 pairs). En-De, test_2016_flickr:
  31.6 tokenised lower-case BLEU (31.4 cased) after 4,000 steps, about 40 minutes on two CPU cores.
- `paper`: the single model of the paper for WMT'14 English to French: 8+8 layers of width 1024,
  280,859,904 parameters with three tables of 32,000 word pieces; Adam at 0.0002 for 60,000 steps,
  then gradient descent at 0.5, halved every 200,000 steps from step 1,200,000 on (four times); uniform
  initialisation in [-0.04, 0.04], gradients clipped to norm 5, dropout 0.2, batches of about 128
  pairs. Decoded with `decode.preset` "gnmt": alpha = beta = 0.2, and pruned with a beamsize of 3.0 as the paper
  does. Published: 38.95 BLEU.

What differs from the paper in `:paper`: one synchronous step instead of 12 asynchronous replicas (12 machines, 6 days);
cells and residual sums are not clipped (that was for quantised inference); SentencePiece instead of word pieces;
a token budget of 8,192 padded slots (about 128 pairs of 32 + 32). The reinforcement learning of section 5.2 is a run of
its own afterwards: --init_from=RUN --config.sequence.objective=reinforce --config.sequence.reward=gleu
--config.sequence.candidates=15 --config.sequence.likelihood=0.017.
"""

from ml_collections import ConfigDict

from seq2seq_jax.config import check_preset, default_config

PRESETS = ("", "multi30k", "paper")


def get_config(preset: str = "") -> ConfigDict:
    """The config of a preset."""
    check_preset(preset, PRESETS, "configs/gnmt.py")
    config = default_config("gnmt")
    if preset == "multi30k":
        set_multi30k(config)
    elif preset == "paper":
        set_paper(config)
    return config


def set_multi30k(config: ConfigDict) -> None:
    """A small corpus of real text: the data is what is short, so the model is small and dropout high."""
    config.data.train = "train"  # a prefix to be named; dev and test are held out of it unless they are named, too
    config.data.update(tokens_per_batch=3072, max_shapes=12)
    config.vocab.update(size=6000, model="bpe")
    config.model.update(features=256, attention_features=256, dropout=0.3)
    config.train.update(steps=4000, decay_steps=4000, learning_rate=0.002, warmup_steps=400)
    config.train.update(save_every=250, evaluate_every=500)
    config.evaluate.dev_sentences = 0


def set_paper(config: ConfigDict) -> None:
    """Wu et al. 2016, sections 3 and 8: the single model for WMT'14 English to French."""
    wmt14 = "tfds:wmt14_translate/fr-en"
    config.data.update(train=wmt14, dev=wmt14, test=wmt14, target="fr")  # each its own split
    config.data.update(tokens_per_batch=8192, max_shapes=16, max_source_len=100, max_target_len=100)
    config.vocab.update(size=32000, joint=False)
    config.model.update(features=1024, attention_features=1024, encoder_layers=8, decoder_layers=8)
    config.model.update(attention_from="previous_step", share_embeddings="none")
    config.model.update(dropout=0.2, init_scale=0.04, dtype="bfloat16")
    config.train.update(steps=2_000_000, label_smoothing=0.0, clip_norm=5.0)
    config.train.update(optimizer="adam_then_sgd", adam_steps=60_000, adam_learning_rate=0.0002, warmup_steps=0)
    config.train.update(schedule="gnmt", learning_rate=0.5, decay_start=1_200_000, decay_every=200_000, decay_times=4)
    config.train.update(log_every=100, save_every=5000, evaluate_every=20_000)
    config.decode.preset = "gnmt"  # section 7: alpha = beta = 0.2, beamsize 3.0
