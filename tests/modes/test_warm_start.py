"""Starting from another run: what is taken, by name, by piece, and what is not."""

import numpy as np
import pytest

from seq2seq_jax.config import default_config
from seq2seq_jax.data.vocab import Vocabs
from seq2seq_jax.data.vocab_training import train_vocabs
from seq2seq_jax.errors import UserError
from seq2seq_jax.experiment import build
from seq2seq_jax.modes.warm_start import match_pieces, warm_start
from seq2seq_jax.train.checkpoints import Checkpoints
from seq2seq_jax.train.writers import write_json

OLD = ["the red cat", "the blue dog", "a cat"]
NEW = ["the green cat", "a bird and the dog", "a dog"]


def make_config(**model):
    config = default_config()
    config.model.update(features=8, attention_features=8, **model)
    config.vocab.kind = "word"
    config.parallel.data = 1
    return config


def make_experiment(lines=OLD, **model):
    return build(make_config(**model), train_vocabs(lines, lines, kind="word", size=50))


def save_run(root, experiment, seed=7):
    """A run's folder with one checkpoint, as a training leaves it."""
    experiment.config.train.seed = seed
    state = experiment.training.init()
    root.mkdir()
    write_json(root / "config.json", experiment.config.to_dict())
    experiment.vocabs.save(root / "vocab")
    with Checkpoints(root / "checkpoints", warn=print) as checkpoints:
        checkpoints.save(3, state, meta={"vocab_sha256": experiment.vocabs.digest}, metrics={"bleu": 1.0})
    return state


def leaves(tree, prefix=""):
    """Name → array."""
    found = {}
    for name, value in tree.items():
        found |= leaves(value, f"{prefix}{name}.") if hasattr(value, "items") else {prefix + name: np.asarray(value)}
    return found


def test_the_same_model_is_taken_whole(tmp_path):
    old = save_run(tmp_path / "old", make_experiment())
    new = make_experiment()
    state, taken = warm_start(new, new.training.init(), tmp_path / "old")
    before, after = leaves(old.params), leaves(state.params)
    assert set(taken.whole) == set(before) and not taken.left and not taken.rows and taken.step == 3
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    assert int(state.step) == 0


def test_another_vocabulary_gives_the_rows_of_the_pieces_both_know(tmp_path):
    old_experiment = make_experiment()
    old = leaves(save_run(tmp_path / "old", old_experiment).params)
    new = make_experiment(NEW)
    fresh = new.training.init()
    before = leaves(fresh.params)
    state, taken = warm_start(new, fresh, tmp_path / "old")
    after = leaves(state.params)
    words = new.vocabs.source.pieces(range(new.vocabs.source.size))
    known = old_experiment.vocabs.source.pieces(range(old_experiment.vocabs.source.size))
    shared = {"<pad>", "<unk>", "<s>", "</s>", "the", "cat", "dog", "a"}
    assert {word for word in words if word in known} == shared
    table = next(name for name in taken.rows if name.endswith("table"))
    assert taken.rows[table] == (len(shared), len(words))
    for row, word in enumerate(words):
        expected = old[table][known.index(word)] if word in shared else before[table][row]
        np.testing.assert_array_equal(after[table][row], expected)
    assert "8 of" in taken.describe() and not taken.left


def test_what_has_another_shape_or_no_name_stays_fresh_and_is_told(tmp_path):
    save_run(tmp_path / "old", make_experiment())
    new = make_experiment(decoder_layers=4)
    fresh = new.training.init()
    before = leaves(fresh.params)
    state, taken = warm_start(new, fresh, tmp_path / "old")
    after = leaves(state.params)
    assert taken.left and all(name.startswith("decoder_stack") for name in taken.left)
    for name in taken.left:
        np.testing.assert_array_equal(after[name], before[name])
        assert name in taken.describe()


def test_a_folder_without_a_run_or_with_nothing_that_fits_is_refused(tmp_path):
    experiment = make_experiment()
    with pytest.raises(UserError, match="no run here"):
        warm_start(experiment, experiment.training.init(), tmp_path / "nothing")
    save_run(tmp_path / "old", make_experiment())
    config = make_config()
    config.model.update(features=12, attention_features=12)
    wide = build(config, Vocabs.load(tmp_path / "old" / "vocab"))
    with pytest.raises(UserError, match="nothing of it fits"):
        warm_start(wide, wide.training.init(), tmp_path / "old")


def test_pieces_are_matched_by_their_text():
    old, new = (train_vocabs(lines, lines, kind="word", size=50).source for lines in (OLD, NEW))
    places = match_pieces(old, new)
    for i, piece in enumerate(new.pieces(range(new.size))):
        if places[i] >= 0:
            assert old.pieces([int(places[i])]) == [piece]
        else:
            assert piece not in OLD[0].split() + OLD[1].split() + OLD[2].split()


# --- from a masked language model ------------------------------------------------------------------

SIZES = {"features": 8, "heads": 2, "feed_forward": 12}
ENCODER = {"layers": 2, "positions": "sinusoidal", "activation": "relu", "embedding_norm": False}


def make_other(name, lines=OLD, target=(), **model):
    """An experiment with another model; `target` is text for a vocabulary of its own."""
    config = default_config(name)
    config.model.update(SIZES | model)
    config.vocab.kind = "word"
    config.parallel.data = 1
    return build(config, train_vocabs(lines, target or lines, kind="word", size=50, joint=not target))


@pytest.mark.parametrize(("share", "norm"), [("all", "post"), ("target", "pre")])
def test_a_transformer_s_encoder_comes_from_bert(tmp_path, share, norm):
    old = leaves(save_run(tmp_path / "old", make_other("bert", **ENCODER, norm=norm)).params)
    new = make_other("transformer", encoder_layers=2, decoder_layers=1, share_embeddings=share, norm=norm)
    fresh = new.training.init()
    before = leaves(fresh.params)
    state, taken = warm_start(new, fresh, tmp_path / "old")
    after, table = leaves(state.params), "source_embedding.table"
    encoder = {name for name in before if name.startswith("encoder")}
    assert encoder and encoder == {name for name in old if name.startswith("encoder")}
    for name in encoder:
        np.testing.assert_array_equal(after[name], old[name])
    shared = "target_embedding.table" if share == "all" else table
    np.testing.assert_array_equal(after[shared], old[table])  # all rows
    assert set(taken.whole) == encoder | {shared}
    assert set(taken.left) == set(before) - set(taken.whole)
    for name in taken.left:
        np.testing.assert_array_equal(after[name], before[name])
    assert all(name.startswith(("decoder", "softmax", "target")) for name in taken.left)
    assert taken.renamed == ({shared: table} if share == "all" else {})
    assert ("target_embedding.table: taken from source_embedding.table" in taken.describe()) == (share == "all")
    assert all(name.startswith("head") for name in taken.unused)


def test_bert_starts_from_a_transformer_by_its_one_table(tmp_path):
    """The other way round; and of another vocabulary the pieces that both know."""
    given = make_other("transformer", NEW, encoder_layers=2, decoder_layers=1)
    old = leaves(save_run(tmp_path / "old", given).params)
    new = make_other("bert", **ENCODER)
    state, taken = warm_start(new, new.training.init(), tmp_path / "old")
    after, places = leaves(state.params), match_pieces(given.vocabs.source, new.vocabs.source)
    assert taken.renamed == {"source_embedding.table": "target_embedding.table"}
    assert taken.rows == {"source_embedding.table": (int((places >= 0).sum()), len(places))}
    known = places >= 0
    assert 4 < known.sum() < len(places)
    np.testing.assert_array_equal(after["source_embedding.table"][known], old["target_embedding.table"][places[known]])


def test_biases_of_a_stack_are_nothing_that_fits(tmp_path):
    """Of another width only the inner biases of feed-forward layers have the same shape, `[L, F]`."""
    save_run(tmp_path / "old", make_other("transformer", encoder_layers=1, decoder_layers=1))
    wide = make_other("transformer", encoder_layers=1, decoder_layers=1, features=12)
    with pytest.raises(UserError, match="nothing of it fits"):
        warm_start(wide, wide.training.init(), tmp_path / "old")


def test_all_of_a_masked_model_is_over_its_source_s_vocabulary(tmp_path):
    given = make_other("bert", NEW, target=["x y z w v u t s r q p o n"], **ENCODER)
    old = leaves(save_run(tmp_path / "old", given).params)
    new = make_other("bert", **ENCODER)
    state, taken = warm_start(new, new.training.init(), tmp_path / "old")
    after, places = leaves(state.params), match_pieces(given.vocabs.source, new.vocabs.source)
    assert set(taken.rows) == {"source_embedding.table", "head_softmax.bias"}
    known = places >= 0
    for name in taken.rows:
        np.testing.assert_array_equal(after[name][known], old[name][places[known]])


def test_a_table_of_one_side_does_not_serve_the_other(tmp_path):
    """That of a language model is of its text, whatever its config says of sharing."""
    save_run(tmp_path / "old", make_other("gpt", source=False, layers=1))
    new = make_other("transformer", encoder_layers=1, decoder_layers=1, share_embeddings="target")
    _, taken = warm_start(new, new.training.init(), tmp_path / "old")
    assert "target_embedding.table" in taken.whole and "source_embedding.table" in taken.left and not taken.renamed
