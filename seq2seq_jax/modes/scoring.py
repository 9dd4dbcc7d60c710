"""A test split translated and scored, with outputs and pictures of the attention left in a folder."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from seq2seq_jax.config import has_search
from seq2seq_jax.data.sources import ParallelText
from seq2seq_jax.errors import UserError
from seq2seq_jax.evaluate.attention_maps import save_attention_map
from seq2seq_jax.evaluate.text import corpus_scores
from seq2seq_jax.experiment import Experiment
from seq2seq_jax.failpoints import reach
from seq2seq_jax.interfaces import PyTree
from seq2seq_jax.modes.measuring import measure_test
from seq2seq_jax.modes.recognising import evaluate_speech
from seq2seq_jax.parallel.hosts import ALONE, Hosts
from seq2seq_jax.serve.translate import moses_nbest
from seq2seq_jax.speech_checks import reads_speech
from seq2seq_jax.tasks.search import Program
from seq2seq_jax.tasks.translation import Translation
from seq2seq_jax.train.checkpoints import Restored
from seq2seq_jax.train.signals import StopSignal
from seq2seq_jax.train.writers import print_line, replace_text
from seq2seq_jax.vocabularies import AUTO
from seq2seq_jax.workdir import Folder


def say(text: str) -> None:
    """Tells people something, once for all hosts: on standard error, because standard output is for results."""
    if jax.process_index() == 0:
        print_line(text, sys.stderr)


def warn(text: str) -> None:
    """Tells people what went wrong on this host."""
    where = f"host {jax.process_index()}: " if jax.process_count() > 1 else ""
    print_line(where + text, sys.stderr)


def evaluate_test(
    experiment: Experiment,
    chosen: Restored,
    test: ParallelText,
    folder: Folder,
    stop: StopSignal,
    hosts: Hosts = ALONE,
    models: tuple[Program, PyTree] | None = None,
) -> dict[str, Any]:
    """Translates the test split, scores it, and leaves outputs and pictures of the attention in the folder.

    Of a masked language model it is loss, perplexity and accuracy of the tokens that it fills, and nothing is left.

    All hosts translate all of it together; the first one scores and writes. `models` search in the place of the run's
    own; see `modes.ensemble.join_models`.
    """
    config = experiment.config

    def poll() -> None:
        stop.check("during the evaluation on test")

    if not has_search(config.model):
        say(f"filling hidden tokens of {len(test)} test sentences from step {chosen.step}")
        return measure_test(experiment, chosen, test, hosts, poll=poll)
    if reads_speech(config.model):
        own = models or (experiment.training.program, chosen.state.averaged)
        how = describe_search(config.decode)
        return evaluate_speech(experiment, chosen, test, folder, stop, hosts, own, say=say, search=how)
    program, params = models or (experiment.training.program, chosen.state.averaged)
    get_references(test)  # refuses before the work, not after it
    say(f"translating {len(test)} test sentences by {describe_search(config.decode)} from step {chosen.step}")
    hosts.gather("test")
    started = time.monotonic()
    attention = "all" if config.decode.method == "minimum_bayes_risk" else "best"  # the best is known only afterwards
    engine = experiment.engine(experiment.training.make_search(), attention=attention, program=program)
    found = experiment.translator(tags=test.tags, engine=engine).translate(params, test.source, poll=poll)
    seconds = time.monotonic() - started
    return hosts.share(
        "test", lambda: {**_score(experiment, found, test, folder), "step": chosen.step, "seconds": round(seconds, 1)}
    )


def describe_search(keys: ConfigDict) -> str:
    """What `config.decode` searches with, in words: "beam 5", or "beam 5 (preset fairseq, ensemble with b, c)"."""
    if keys.method in ("beam", "prefix_beam"):  # frame by frame CTC searches alone, else token by token
        alone = not (keys.ensemble or keys.language_model or keys.ngram)
        found = f"{'prefix ' if keys.method == 'prefix_beam' and alone else ''}beam {keys.beam_size}"
    elif keys.method == "minimum_bayes_risk":
        found = f"{keys.method} of {keys.candidates} candidates from {keys.candidates_from}"
    else:
        found = keys.method
    more = []  # names without their folders: these words go into the card of an exported model
    for key, words in (("ensemble", "ensemble with"), ("language_model", "language model")):
        if names := [Path(name.strip()).name for name in keys[key].split(",") if name.strip()]:
            more.append(f"{words} {', '.join(names)}")
    if keys.ngram:
        name = "of the training" if keys.ngram.strip() == AUTO else Path(keys.ngram).name
        more.append(f"n-gram model {name}")
    if keys.ctc_weight:
        more.append(f"CTC {keys.ctc_weight:g}")
    if keys.preset != "default":
        more.insert(0, f"preset {keys.preset}")
    return f"{found} ({', '.join(more)})" if more else found


def _score(experiment: Experiment, found: list[Translation], test: ParallelText, folder: Folder) -> dict[str, Any]:
    """The scores of translations; what they are is left in the folder."""
    config, references = experiment.config, get_references(test)
    folder.outputs.mkdir(parents=True, exist_ok=True)
    replace_text(folder.outputs / "test.hypotheses.txt", "".join(item.text + "\n" for item in found))
    reach("test")
    replace_text(folder.outputs / "test.source.txt", "".join(line + "\n" for line in test.source))
    replace_text(folder.outputs / "test.references.txt", "".join(line + "\n" for line in references))
    nbest = (moses_nbest(n, item.candidates) for n, item in enumerate(found))
    replace_text(folder.outputs / "test.nbest.txt", "".join(nbest))
    target = test.languages[1] or config.data.target
    scores: dict[str, Any] = dict(corpus_scores([t.text for t in found], references, target=target))
    searched = ("method", "preset", "beam_size", "ensemble", "language_model")
    scores |= {"sentences": len(test), **{key: config.decode[key] for key in searched}}
    scores["search"] = describe_search(config.decode)
    return scores | {"samples": _show_samples(experiment, found, test, folder)}


def _show_samples(
    experiment: Experiment, found: list[Translation], test: ParallelText, folder: Folder
) -> list[dict[str, str]]:
    """A few translations spread over the test split, each with a picture of its attention."""
    count = min(experiment.config.evaluate.samples, len(found))
    samples = []
    for place in range(count):
        n = place * len(found) // count
        item = found[n]
        sample = {"source": test.source[n], "hypothesis": item.text, "reference": get_references(test)[n]}
        if item.attention is not None:
            path = folder.outputs / f"attention_{n:05d}.png"
            pieces = experiment.vocabs.target.pieces(item.candidates[0].tokens)
            title = f"sentence {n + 1}: {item.text}"
            save_attention_map(
                path, item.attention, source_pieces=item.source_pieces, target_pieces=pieces, title=title
            )
            sample["attention"] = str(path.relative_to(folder.root))
        samples.append(sample)
    return samples


def get_references(text: ParallelText) -> list[str]:
    """The target side.

    Raises:
        UserError: there is none.
    """
    if text.target is None:
        raise UserError(f"{text.name}: has no target side to score against.")
    return text.target
