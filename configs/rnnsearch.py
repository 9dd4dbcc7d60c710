"""RNNsearch: learning to align and translate at once (Bahdanau et al. 2015, arXiv 1409.0473).

    python -m seq2seq_jax.main --config=configs/rnnsearch.py         the built-in corpus
    python -m seq2seq_jax.main --config=configs/rnnsearch.py:small \
        --config.data.train=DIR/train --config.data.dev=DIR/val --config.data.test=DIR/test --config.data.target=fr
    python -m seq2seq_jax.main --config=configs/rnnsearch.py:paper --mode=prepare  WMT'14 of TFDS to tokens, once
    python -m seq2seq_jax.main --config=configs/rnnsearch.py:paper          or --config.data.train=DIR/train ...

The attention of Luong et al. (2015, arXiv 1508.04025) in its place:

    python -m seq2seq_jax.main --config=configs/rnnsearch.py --config.model.attention=general \
        --config.model.attention_from=current_step --config.model.readout=tanh --config.model.cell=lstm

Presets:

- (none): width 128 and subwords on the phrasebook; Adam; dropout.
- `small`: width 128 on a small corpus of words between blanks (tokenise it first): the data, the vocabulary, the
  training and the search of `configs/lstm.py:small`, of which only the model differs. 1,810,336 parameters; a step
  takes about as long as that one's.
- `paper`: RNNsearch-50 for WMT'14 English to French: 1,000 units, embeddings of 620, a maxout layer of 500, sentences
  of up to 50 words, a vocabulary of 30,000 (four special ones included) of each language; 80,446,000 parameters.
  Adadelta, batches of 80 sentences, gradients clipped to norm 1; 288,000 updates (five epochs, 667,000 updates, were
  their best model). Published BLEU: 26.75, and 28.45 after the five epochs (36.15 of sentences without unknown words).

What differs from the paper in `:paper`, besides what `models/rnnsearch.py` says: initial values are uniform with the
deviations of the paper's normal distributions (0.01; 0.001 in the attention, its v included, which was zero there);
recurrent kernels are orthogonal as there, biases zero. All pairs of WMT'14 instead of the 348 million words selected
from them; words are what stands between blanks, so tokenise the text first. Batches are of sentences of similar length
throughout (there: 1,600 sentences at a time were sorted by length).
"""

from ml_collections import ConfigDict

from seq2seq_jax.config import check_preset, default_config

PRESETS = ("", "small", "paper")


def get_config(preset: str = "") -> ConfigDict:
    """The config of a preset."""
    check_preset(preset, PRESETS, "configs/rnnsearch.py")
    config = default_config("rnnsearch")
    if preset == "small":
        set_small(config)
    elif preset == "paper":
        set_paper(config)
    return config


def set_small(config: ConfigDict) -> None:
    """What `configs/lstm.py:small` is, with this model."""
    config.data.train = "train"  # a prefix to be named; dev and test are held out of it unless they are named, too
    config.data.update(tokens_per_batch=1024)
    config.vocab.update(kind="word", size=4000, joint=False)
    config.model.update(features=128, embedding_features=128, attention_features=128, readout_features=64, dropout=0.0)
    config.train.update(steps=3000, decay_steps=3000, warmup_steps=100, label_smoothing=0.0)
    config.train.update(save_every=500, evaluate_every=1000, patience_metric="loss")
    config.decode.update(beam_size=12, length_normalisation="none")  # plain log-probability
    config.evaluate.update(dev_sentences=100, samples=0)


def set_paper(config: ConfigDict) -> None:
    """Bahdanau et al. 2015, section 4 and appendices A.2.3 and B: RNNsearch-50."""
    wmt14 = "tfds:wmt14_translate/fr-en"
    config.data.update(train=wmt14, dev=wmt14, test=wmt14, target="fr")  # each its own split
    config.data.update(sentences_per_batch=80, max_shapes=16, max_source_len=51, max_target_len=51)  # with eos
    config.vocab.update(kind="word", size=30_000, joint=False)
    config.model.update(features=1000, embedding_features=620, attention_features=1000, readout_features=500)
    # Uniform in [-a, a] has the deviation a / sqrt(3): 0.01, and 0.001 for the attention.
    config.model.update(dropout=0.0, init_scale=0.01732, attention_init_scale=0.001732, recurrent_init="orthogonal")
    config.train.update(steps=288_000, label_smoothing=0.0, loss_per="sentence", clip_norm=1.0)
    config.train.update(optimizer="adadelta", rho=0.95, schedule="constant", learning_rate=1.0, warmup_steps=0)
    config.train.update(log_every=100, save_every=5000, evaluate_every=20_000, patience_metric="loss")
    config.decode.update(beam_size=12, length_normalisation="none")
