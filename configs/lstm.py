"""The LSTM without attention (Sutskever et al. 2014, arXiv 1409.3215), reading its source reversed.

    python -m seq2seq_jax.main --config=configs/lstm.py              the built-in corpus
    python -m seq2seq_jax.main --config=configs/lstm.py:small \
        --config.data.train=DIR/train --config.data.dev=DIR/val --config.data.test=DIR/test --config.data.target=fr
    python -m seq2seq_jax.main --config=configs/lstm.py:paper --mode=prepare     WMT'14 of TFDS to tokens, once
    python -m seq2seq_jax.main --config=configs/lstm.py:paper                    or --config.data.train=DIR/train ...

It is the measure of what attention is worth: the same data, vocabulary, width, batches and steps as
`configs/gnmt.py`; only the model differs. The decoder starts from the encoder's last state and knows
no more of the source. There is no attention to draw and no coverage to penalise.

Presets:

- (none): 2 layers of width 128 and subwords on the phrasebook; Adam; dropout.
- `small`: 2 layers of width 128 on a small corpus of words between blanks (tokenise it first), 4,000 of them on each
  side, the others `<unk>`; no dropout, and search as in the paper; Adam (on the mean over tokens, clipped to norm 5)
  and the house's initialisation, because there is time for a few epochs only. What `experiments/seq2seq_2014` trains.
- `paper`: the single reversed model of the paper for WMT'14 English to French, trained as its section 3 states.
- `paper_eight`: the same on eight devices in the layout of 2014 (docs/sharding.md, "exact").

`paper`, which `--mode=describe` counts without any data; what is stated, and the keys that hold it:

- 12 million pairs of WMT'14: `data.train=tfds:wmt14_translate/fr-en:train[:12000000]`.
- The 160,000 and 80,000 most frequent words, `<unk>` for all others: `vocab.kind=word`, `size`, `target_size`.
- 4 layers of 1000 cells on each side, embeddings of 1000, the source reversed: `model.layers`, `features`,
  `reverse_source`. 384M parameters: here 384,000,000 weights, and 112,000 biases besides.
- Parameters drawn uniformly from [-0.08, 0.08]; no dropout: `model.init_scale=0.08`, `dropout=0`.
- Gradient descent without momentum at a rate of 0.7, after 5 epochs halved every half epoch (for the first time when 5
  are done), 7.5 epochs in all: `train.optimizer=sgd`, `learning_rate=0.7`, `schedule=halving`,
  `halve_after_epochs=5.0`, `halve_every_epochs=0.5`, `epochs=7.5`. "Halved every five epochs", as some summaries have
  it, is the same schedule with other numbers: `halve_after_epochs=5.0`, `halve_every_epochs=5.0`.
- Batches of 128 sentences of similar length: `data.sentences_per_batch=128` in at most `max_shapes=16` shapes.
- The gradient g of the summed log-probability, divided by 128: `train.loss_per=sentence`, not per token. It becomes
  5 g / s where its norm s is more than 5: `train.clip_norm=5.0`. "[10, 25]", which summaries take for a range of norms,
  are citation marks in the paper's sentence, and no numbers of the recipe.
- Beam search by log-probability alone, with 12, 2 or 1 hypotheses: `decode.beam_size`, `length_normalisation=none`.

Published: test BLEU 30.59 with a beam of 12 (26.17 reading forward); five models 33.00, 34.50 and 34.81 with beams of
1, 2 and 12; 36.5 by rescoring the 1000-best lists of a phrase-based system that has 33.30. Test perplexity 4.7 (5.8
forward). Ten days at 6,300 words a second on eight GPUs; one does 1,700.

What differs in `paper`: the pairs are the first 12 million of TFDS's 40.8 million, which lie shuffled there, not the
selection of Schwenk's that the authors took. TFDS's text is not tokenised, and words are what stands between blanks:
for the paper's words tokenise it first and name your files (`--config.data.train=DIR/train`, dev and test likewise).
Words are counted in a million evenly spread pairs (`vocab.file=SOURCE,TARGET` takes lists of your own), and the special
ids are among the 160,000 and 80,000. Pairs with more than 100 tokens on a side are left out. The last batch
of a length may have fewer than 128 sentences, and is divided by those it has. Biases begin at 0.
"""

from ml_collections import ConfigDict

from seq2seq_jax.config import check_preset, default_config

PRESETS = ("", "small", "paper", "paper_eight")


def get_config(preset: str = "") -> ConfigDict:
    """The config of a preset."""
    check_preset(preset, PRESETS, "configs/lstm.py")
    config = default_config("lstm")
    if preset == "small":
        set_small(config)
    elif preset:
        set_paper(config)
    if preset == "paper_eight":  # section 3.5: a layer and a part of the softmax on each
        config.parallel.update(data=1, stage=4, tensor=2, strategy="exact")
    return config


def set_small(config: ConfigDict) -> None:
    """The paper's model at the size of two CPU cores; Adam, because there is time for a few epochs only."""
    config.data.train = "train"  # a prefix to be named; dev and test are held out of it unless they are named, too
    config.data.update(tokens_per_batch=1024)
    config.vocab.update(kind="word", size=4000, joint=False)
    config.model.update(features=128, layers=2, dropout=0.0)
    config.train.update(steps=3000, decay_steps=3000, warmup_steps=100, label_smoothing=0.0)
    config.train.update(save_every=500, evaluate_every=1000, patience_metric="loss")
    config.decode.update(beam_size=12, length_normalisation="none")  # the paper's plain log-probability
    config.evaluate.update(dev_sentences=100, samples=0)


def set_paper(config: ConfigDict) -> None:
    """Sutskever et al. 2014, section 3: the single model for WMT'14 English to French."""
    wmt14 = "tfds:wmt14_translate/fr-en"
    config.data.update(train=f"{wmt14}:train[:12000000]", dev=wmt14, test=wmt14, target="fr")
    config.data.update(sentences_per_batch=128, max_shapes=16, max_source_len=100, max_target_len=100)
    config.vocab.update(kind="word", size=160_000, target_size=80_000, joint=False)
    config.model.update(features=1000, layers=4, reverse_source=True, dropout=0.0, init_scale=0.08)
    config.train.update(epochs=7.5, steps=703_125, label_smoothing=0.0, loss_per="sentence", clip_norm=5.0)
    config.train.update(optimizer="sgd", momentum=0.0, learning_rate=0.7, warmup_steps=0)
    config.train.update(schedule="halving", halve_after_epochs=5.0, halve_every_epochs=0.5)
    config.train.update(log_every=100, save_every=5000, evaluate_every=20_000, patience_metric="loss")
    config.decode.update(beam_size=12, length_normalisation="none")  # plain log-probability, section 3.2
