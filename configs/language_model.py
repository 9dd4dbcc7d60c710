"""A language model of LSTMs (Mikolov et al. 2010; Zaremba et al. 2014, arXiv 1409.2329), for shallow fusion.

    python -m seq2seq_jax.main --config=configs/language_model.py              German of the built-in corpus, minutes

It reads the target side of a corpus and nothing of the source. Dev perplexity says how good it is, and the best
checkpoint is the best by it; the BLEU that a run reports as well says nothing here.

Beside a translation model (Gulcehre et al. 2015, arXiv 1503.03535) it has to have that model's vocabulary of the
target language. On more text of that language, one file `my/mono.de` for both sides:

    python -m seq2seq_jax.main --config=configs/language_model.py --workdir=runs/language_model \
        --config.vocab.file=RUN/vocab/vocab.json --config.data.train=my/mono \
        --config.data.source=de --config.data.target=de
    python -m seq2seq_jax.main --workdir=RUN --mode=translate --input=FILE \
        --config.decode.language_model=runs/language_model --config.decode.language_model_weight=0.2

(`RUN/vocab/vocab_target.json` where the two languages of RUN have a vocabulary each.) On the same corpus and with the
same `config.vocab` and seed as RUN the vocabulary is equal by itself, as it is for the command at the top and
`configs/gnmt.py`.

Differs from the papers: 2 layers of width 128, subwords, one table for embedding and softmax, Adam; every sentence
begins with a zero state.
"""

from ml_collections import ConfigDict

from seq2seq_jax.config import check_preset, default_config


def get_config(preset: str = "") -> ConfigDict:
    """The config; there are no presets."""
    check_preset(preset, ("",), "configs/language_model.py")
    config = default_config("language_model")
    config.train.update(patience_metric="loss", label_smoothing=0.0)
    config.evaluate.update(dev_sentences=1, samples=0)  # what it says by itself is no translation
    config.decode.update(beam_size=1, length_extra=1, length_factor=1.0)
    return config
