"""Every section and key of a run's config, once, with what it means, its default and its limits.

No key is None: each default has the type that its values have.
"""

from __future__ import annotations

from typing import Any

RESUMABLE = (
    "data.prepared",  # what is in it is checked by its digest
    "data.shard_pairs",
    "parallel.",
    "train.steps",
    "train.epochs",
    "train.save_every",
    "train.evaluate_every",
    "train.log_every",
    "train.keep_hours",
    "train.patience",
    "train.profile_steps",
    "train.tensorboard",
    "audio.strict",
    "audio.cache_mib",
)
"""Keys (or sections, ending in a dot) that may differ from the saved config when a run is resumed."""


DEFAULTS: dict[str, dict[str, Any]] = {
    "data": {
        # Corpora, separated by commas: the built-in "phrasebook"; PREFIX of PREFIX.en and PREFIX.de (.gz too); a .tsv;
        # "tfds:wmt14_translate/fr-en". Each may say more: "PREFIX?weight=2&tag=bt&source=en&target=fr" (docs/data.md).
        "train": "phrasebook",
        "dev": "auto",  # a prefix; "auto" is the phrasebook's own split, or held out of train
        "test": "auto",  # likewise
        "source": "en",  # language codes: the endings of the files
        "target": "de",
        "prepared": "auto",  # folder of --mode=prepare; "auto": WORKDIR/prepared where there is one; "": text in memory
        "shard_pairs": 250_000,  # --mode=prepare: pairs in a shard, the most that a kill loses
        "temperature": 1.0,  # several corpora: shares are their sizes (times weights) to the power 1/temperature
        "target_tag": False,  # begin every source with a tag of its target language, such as <2de>
        "curriculum_epochs": 0,  # the first so many epochs go from short sentences to long ones
        "subword_sampling": 0.0,  # unigram: alpha (0.1 to 0.5) of Kudo 2018; bpe: dropout (0.1) of Provilkov 2020
        "subword_sides": "both",  # or "source", "target"
        "reversed": False,  # the corpora are those of the other direction: their sides change places once they are read
        # --mode=backtranslate: text in the target language, a sentence a line (.gz too). As a corpus it may say more:
        # "mono.de?weight=0.5&tag=bt"; the tag is "bt" where it names none.
        "monolingual": "",
        "monolingual_search": "beam",  # how it is translated: by `decode`, or "sampling" (Edunov et al. 2018)
        "phrasebook_pairs": 30000,  # training pairs that the built-in corpus makes
        "held_out_pairs": 1000,  # pairs in each of dev and test where "auto" holds them out, 5 % at most
        "tokens_per_batch": 2048,  # source plus target slots in a global batch, padding included
        "sentences_per_batch": 0,  # in its place: so many pairs of similar length; 0 is by `tokens_per_batch`
        "rows_multiple": 8,  # rows of every batch are multiples of it; the number of devices must divide it
        "pack": False,  # several short pairs share a row, so that little is padding (models that attend to themselves)
        "max_shapes": 6,  # most shapes of a batch, and so most compilations of the step
        "max_source_len": 80,  # tokens with eos; longer training pairs are left out and counted
        "max_target_len": 80,
        "prefetch": 4,  # batches read ahead of the device
    },
    "clean": {  # training pairs to leave out; 0, False and "" are off
        "max_chars": 0,  # either side is longer
        "max_ratio": 0.0,  # one side has more than so many times the characters of the other (Han: 3, kana, Hangul: 2)
        "duplicates": False,  # the pair was there before
        "copies": False,  # both sides are equal
        "letters": 0.0,  # share of letters that must be of the language's script, at least
        "language": 0.0,  # probability that a side is in its language, at least: 0.1 is good; needs the extra [clean]
    },
    "vocab": {
        "kind": "sentencepiece",  # or "word", "char", "byte"
        "model": "unigram",  # or "bpe"; sentencepiece only
        "size": 1500,  # the four special ids included; an upper bound for small corpora
        "target_size": 0,  # with joint=False: another size for the target's; 0 is `size`
        "joint": True,  # one vocabulary for both sides
        "normalization": "nmt_nfkc",  # sentencepiece's rule, stored with the vocabulary
        "character_coverage": 1.0,
        "byte_fallback": False,  # spell unknown characters in bytes
        # Your own: a SentencePiece .model, or a list of words (kind "word"); "SOURCE,TARGET" for two. Another run's, as
        # it is: RUN/vocab/vocab.json, or vocab_target.json.
        "file": "",
        "from_init": True,  # with train.init_from: that run's vocabulary; False trains a new one
        "tags": "",  # more tags, separated by commas, for corpora that come later: "2fr,bt"
    },
    "train": {
        "init_from": "",  # a run whose parameters are the start (also --init_from=RUN)
        "steps": 2000,  # updates
        "epochs": 0.0,  # above 0 it counts instead: `steps` becomes so many times the updates of an epoch
        "accumulate": 1,  # global batches in an update
        "seed": 0,
        "loss_per": "token",  # what the gradient is a mean over: "token", or "sentence" (of sums over tokens)
        "label_smoothing": 0.1,
        # "adam", "adamw", "nadam", "nadamw", "radam", "adafactor", "adagrad", "adadelta", "rmsprop", "lamb", "lion",
        # "muon", "sgd" (with `momentum`), "adam_then_sgd"
        "optimizer": "adam",
        "learning_rate": 0.003,  # the schedule's peak
        # or "constant", "inverse_sqrt", "linear", "exponential", "stable", "gnmt", "halving"
        "schedule": "cosine",
        "warmup_steps": 200,  # linear
        # "cosine", "linear", "exponential", "stable": step at which the rate is at its floor; of its own, so that
        # `steps` may change
        "decay_steps": 2000,
        "decay_floor": 0.05,  # the same: share of the peak that stays
        "decay_start": 0,  # "gnmt": first halving; "stable": where the decay begins
        "decay_every": 0,  # "gnmt": steps between halvings
        "decay_times": 0,  # "gnmt": most halvings
        "halve_after_epochs": 5.0,  # "halving": the first one is when so many epochs are done
        "halve_every_epochs": 0.5,  # "halving": from one to the next
        "adam_steps": 0,  # "adam_then_sgd": steps before the change
        "adam_learning_rate": 0.0,  # "adam_then_sgd": constant rate until the change
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "momentum": 0.0,  # "sgd", "rmsprop"
        "weight_decay": 0.0,  # decoupled, on matrices; the optimizers that have it
        "rho": 0.9,  # "adadelta": decay of both its means
        "clip_norm": 5.0,  # global norm of the mean gradient; 0 is off
        "freeze": "",  # parameters that stay as they are: regular expressions separated by commas, "encoder,embedding"
        "ema_decay": 0.0,  # exponential moving average of the parameters, which is what is evaluated; 0 is none
        "patience": 0,  # evaluations without a better score before training stops; 0 never stops early
        "patience_metric": "bleu",  # or "loss", of speech "wer"; the best checkpoint is the best by it, patience or not
        "own_tokens": 0.0,  # scheduled sampling: share of the decoder's inputs that are its own predictions, at the end
        "own_tokens_start": 0,  # step at which the share begins to rise from 0, linearly
        "own_tokens_steps": 1000,  # steps that it rises for
        "own_tokens_passes": 1,  # passes that make the predictions; T passes are the sequential original
        "profile_steps": "",  # "FIRST:LAST": these steps go to WORKDIR/profile for TensorBoard or Perfetto
        "tensorboard": False,  # events in WORKDIR/tensorboard beside metrics.jsonl; needs the extra [tensorboard]
        "log_every": 50,
        "save_every": 500,  # steps between checkpoints
        "evaluate_every": 500,  # steps between evaluations on dev, each with a checkpoint
        "keep_last": 2,  # newest checkpoints kept besides the best one; at least 2, so that one may rot
        "keep_hours": 24.0,  # the first checkpoint of every so many hours of training is kept, too; 0 is off
        "max_skipped": 10,  # non-finite steps in a row before the run stops with exit code 3
    },
    "sequence": {  # sequence-level training, from a trained start (--init_from)
        "objective": "none",  # "minimum_risk" (Shen 2016), or "reinforce" (GNMT, section 5.2)
        "candidates": 8,  # a sentence
        "proposals": "sample",  # or "nbest"
        "reward": "chrf",  # of a sentence: "chrf", "bleu" (smoothed), "gleu"
        "sharpness": 0.005,  # "minimum_risk": alpha of the candidates' distribution
        "reference": True,  # "minimum_risk": the reference is a candidate, too
        "likelihood": 0.0,  # weight of the likelihood of the reference, GNMT's alpha (0.017)
    },
    "masked": {  # what a masked language model (bert) has to fill
        "share": 0.15,  # of a row's tokens that are hidden, at least one
        "mask": 0.8,  # of these, share that become the mask token
        "random": 0.1,  # and share that become any other token; the rest stay as they are
    },
    "audio": {  # of models that hear: las, ctc
        "rate": 16000,  # samples a second that all audio is brought to
        "hop": 160,  # samples of a frame, which lengths of sources are counted in
        "window": 400,  # samples that a frame's spectrum is made of
        "fft": 512,
        "mels": 80,
        "low": 20.0,  # hertz, of the lowest filter
        "high": 0.0,  # of the highest; 0 is half the rate
        "mel_scale": "htk",  # or "slaney"
        "log": "ln",  # or "log10", "whisper"
        "normalisation": "utterance",  # mean and variance of every mel: of an utterance; "global" of the corpus; "none"
        "preemphasis": 0.97,  # 0 is none
        "augment": "none",  # SpecAugment (Park et al. 2019): "LB", "LD", "SM", "SS", or "own", which the next six say
        "time_warp": 0,  # frames
        "freq_masks": 2,
        "freq_width": 27,  # mels, the most
        "time_masks": 2,
        "time_width": 100,  # frames, the most
        "time_share": 1.0,  # of an utterance, the most that one mask hides
        "speeds": "",  # "0.9,1.0,1.1": an utterance is played at one of them, drawn anew in every epoch
        "ctc_weight": 0.0,  # las: share of the loss that is CTC's (Watanabe et al. 2017); needs model.ctc_head
        "strict": False,  # a damaged file ends the training; else it is left out and counted
        "cache_mib": 1024,  # decoded audio that is kept in memory
        "spoken_hours": 2.0,  # training speech that the built-in corpus makes
    },
    "decode": {
        "method": "beam",  # or "greedy", "sampling", "minimum_bayes_risk"; ctc: also "prefix_beam"
        # Rules and numbers of a beam search: "default" (ours), or what "gnmt" (the paper), "fairseq", "tensor2tensor",
        # "huggingface" do; docs/search.md. Keys below that are "preset" or exactly -1 are the preset's.
        "preset": "default",
        "beam_size": 5,  # 1 is greedy search, whatever the rules below
        "length_normalisation": "preset",  # or "none", "gnmt", "average", "bonus"
        "length_penalty": -1.0,  # "gnmt", "average": exponent alpha, which may be negative; 0 is none
        "word_bonus": -1.0,  # "bonus": added for every token, may be negative
        "coverage_penalty": -1.0,  # GNMT's beta, at least 0, where the model attends; 0 is none
        "prune": -1.0,  # GNMT's beamsize, at least 0: tokens and outputs so far below the best are dropped; 0 is off
        "stop": "preset",  # when a sentence is done: "exact", "first", "heuristic", "never"
        "unfinished": "preset",  # hypotheses at the longest output: "last", "compete", or "end" (eos is forced)
        "length_factor": 2.0,  # longest output: factor x source tokens + extra
        "length_extra": 10,
        "min_length_factor": 0.0,  # shortest output, likewise; never more than the longest
        "min_length_extra": 0,
        "groups": 1,  # diverse beam search (Vijayakumar et al. 2018): groups of beams, which divide `beam_size`
        "diversity": 0.5,  # what a token costs for each hypothesis of an earlier group that took it
        "temperature": 1.0,  # "sampling" and "minimum_bayes_risk"
        "top_k": 0,  # draw from so many most probable tokens; 0 is all
        "top_p": 1.0,  # draw from the fewest tokens that have so much probability together
        "seed": 0,  # of the draws
        "candidates": 32,  # "minimum_bayes_risk": outputs that are compared
        "candidates_from": "sampling",  # or "beam"
        "utility": "chrf",  # or "bleu": what the chosen output has most of, on average over the candidates
        "ensemble": "",  # more runs (folders, separated by commas) of the same vocabulary that search together
        "ensemble_average": "log",  # of log-probabilities; or "arithmetic", of probabilities
        "language_model": "",  # shallow fusion: a run of configs/language_model.py or gpt.py:language_model
        "language_model_weight": 0.2,
        "ngram": "",  # shallow fusion: an n-gram model of the vocabulary's pieces: ARPA; "auto": of the training
        "ngram_order": 6,  # the longest n of an "auto" one
        "ngram_weight": 0.2,
        "ctc_weight": 0.0,  # las: share of the score that is CTC's, frame by frame; needs model.ctc_head
        "prefix": "",  # text that every output begins with
        "must": "",  # words or phrases that every output has, separated by |
        "must_not": "",  # words or phrases that no output has, separated by |
        "no_repeat_ngram": 0,  # no n-gram of so many tokens twice; 0 is off
        "max_loop": 0,  # a phrase of 1 to 8 tokens may follow itself so often; 0 is off
        "rows": 64,  # sentences decoded at a time
        "max_source_len": 256,  # tokens; a longer input is cut there, with a warning
    },
    "evaluate": {
        "dev_beam_size": 1,  # beam for dev BLEU while training; 1 is greedy
        "dev_sentences": 500,  # the first ones of dev that are translated; 0 is all
        "samples": 5,  # translations shown at the end, each with a picture of its attention
    },
    "parallel": {  # sizes of the mesh; one of them may be -1, what is left of the devices
        "data": -1,  # devices that share a batch, each with all parameters
        "fsdp": 1,  # devices that share a batch and split parameters and optimizer state at rest
        "stage": 1,  # devices that the layers are spread over
        "tensor": 1,  # devices that split the vocabulary besides, and heads and feed-forward layers of a Transformer
        "strategy": "auto",  # rule table: "data_parallel", "fsdp", "balanced", "exact"; "auto" follows from the sizes
        "step": "auto",  # "shard_map" sends what it says, "jit" leaves that to the compiler; "auto": jit on one device
        # How a stack runs: "in_order", or "wavefront"; "auto": wavefront over stages, else in order. A Transformer's
        # over stages: always by microbatches; on one device: "in_order", or "scanned" (one loop, compiled once, in the
        # same time for any depth); "auto": scanned where a device has more than 12
        "layers": "auto",
        "chunks": 0,  # over stages, pieces that sequences (a Transformer's rows) are cut into; 0: four for every stage
        "recurrence": "loop",  # of recurrent layers over time; "kernel": a Pallas kernel where there is one (opt-in)
        "unroll": 0,  # most steps of that loop compiled as one: quicker on GPUs, slower to compile; 0: by the device
        "recompute_gates": False,  # make gates again in the backward pass: less memory on accelerators, more products
        # What a Transformer's layers keep for the backward pass: "none" (all of it is kept), "dots" (products with
        # weights; the rest is made again), "full" (their inputs alone: least memory, a third more products)
        "remat": "none",
    },
}
"""Every key but those of the model; `default_config` puts both together."""

OPTIMIZERS = (
    "adam", "adamw", "nadam", "nadamw", "radam", "adafactor", "adagrad", "adadelta", "rmsprop", "lamb", "lion", "muon",
    "sgd", "adam_then_sgd",
)  # fmt: skip
CHOICES: dict[str, tuple[str, ...]] = {
    "vocab.kind": ("sentencepiece", "word", "char", "byte"),
    "vocab.model": ("unigram", "bpe"),
    "vocab.normalization": ("nmt_nfkc", "nmt_nfkc_cf", "nfkc", "nfkc_cf", "identity"),
    "model.attention": ("additive", "dot", "general", "content", "location"),
    "model.listener": ("lstm", "conformer"),
    "model.subsample": ("pyramid", "conv", "vgg"),
    "audio.mel_scale": ("htk", "slaney"),
    "audio.log": ("ln", "log10", "whisper"),
    "audio.normalisation": ("utterance", "global", "none"),
    "audio.augment": ("none", "LB", "LD", "SM", "SS", "own"),
    "model.attention_from": ("previous_step", "current_step"),
    "model.readout": ("maxout", "tanh"),
    "model.recurrent_init": ("scaled", "orthogonal"),
    "model.readout_state": ("asking", "newest"),
    "model.share_embeddings": ("none", "target", "all"),
    "model.dtype": ("float32", "bfloat16"),
    "model.prefix": ("causal", "full"),
    "model.norm": ("post", "pre"),
    "model.positions": ("sinusoidal", "learned", "relative", "rotary"),
    "model.linformer_share": ("none", "heads", "kv", "layers"),
    "model.activation": ("relu", "gelu", "swish", "swiglu"),
    "model.cell": ("lstm", "lstm_peephole", "gru"),
    "train.optimizer": OPTIMIZERS,
    "train.patience_metric": ("bleu", "loss", "wer"),
    "data.subword_sides": ("both", "source", "target"),
    "data.monolingual_search": ("beam", "sampling"),
    "sequence.objective": ("none", "minimum_risk", "reinforce"),
    "sequence.proposals": ("sample", "nbest"),
    "decode.method": ("beam", "greedy", "sampling", "minimum_bayes_risk", "prefix_beam"),
    "decode.preset": ("default", "gnmt", "fairseq", "tensor2tensor", "huggingface"),
    "decode.length_normalisation": ("preset", "none", "gnmt", "average", "bonus"),
    "decode.stop": ("preset", "exact", "first", "heuristic", "never"),
    "decode.unfinished": ("preset", "last", "compete", "end"),
    "decode.candidates_from": ("sampling", "beam"),
    "decode.utility": ("chrf", "bleu"),
    "decode.ensemble_average": ("log", "arithmetic"),
    "sequence.reward": ("chrf", "bleu", "gleu"),
    "parallel.strategy": ("auto", "data_parallel", "fsdp", "balanced", "exact"),
    "parallel.step": ("auto", "jit", "shard_map"),
    "parallel.layers": ("auto", "in_order", "scanned", "wavefront"),
    "parallel.remat": ("none", "dots", "full"),
    "parallel.recurrence": ("loop", "kernel"),
    "train.schedule": ("constant", "inverse_sqrt", "cosine", "linear", "exponential", "stable", "gnmt", "halving"),
    "train.loss_per": ("token", "sentence"),
}
AT_LEAST: dict[str, float] = {
    "data.phrasebook_pairs": 100, "data.tokens_per_batch": 1, "data.rows_multiple": 1, "data.max_shapes": 1,
    "parallel.chunks": 0, "parallel.unroll": 0, "model.cells": 0, "data.max_source_len": 2,
    "data.max_target_len": 2, "data.prefetch": 1, "data.held_out_pairs": 1, "vocab.size": 5, "model.features": 1,
    "model.encoder_layers": 1, "model.decoder_layers": 1, "model.layers": 1, "model.init_scale": 0,
    "model.embedding_features": 1, "model.readout_features": 1, "model.attention_init_scale": 0,
    "model.attention_features": 1, "model.heads": 1, "model.feed_forward": 1, "model.max_positions": 1,
    "model.linformer": 0, "train.steps": 1, "train.seed": 0, "train.warmup_steps": 0, "train.clip_norm": 0,
    "train.log_every": 1, "train.save_every": 1, "train.evaluate_every": 1, "train.keep_last": 2, "train.keep_hours": 0,
    "train.max_skipped": 1, "train.weight_decay": 0, "decode.beam_size": 1, "decode.length_factor": 0,
    "decode.min_length_factor": 0, "decode.min_length_extra": 0, "decode.groups": 1, "decode.diversity": 0,
    "decode.temperature": 0, "decode.top_k": 0, "decode.seed": 0, "decode.candidates": 2,
    "decode.language_model_weight": 0, "decode.no_repeat_ngram": 0, "decode.max_loop": 0,
    "decode.length_extra": 1, "decode.rows": 1,
    "decode.max_source_len": 2, "data.shard_pairs": 1, "data.temperature": 0.01, "data.curriculum_epochs": 0,
    "clean.max_chars": 0, "clean.max_ratio": 0, "train.accumulate": 1, "train.patience": 0,
    "train.own_tokens_start": 0, "train.own_tokens_steps": 1, "train.own_tokens_passes": 1, "train.momentum": 0,
    "sequence.candidates": 2, "sequence.sharpness": 0, "sequence.likelihood": 0,
    "model.reduction": 1, "model.listener_layers": 1, "model.listener_features": 2, "model.kernel": 1,
    "model.channels": 1, "model.speller_layers": 1, "model.location_filters": 1, "model.location_width": 1,
    "audio.rate": 1000, "audio.hop": 1, "audio.window": 2, "audio.fft": 2, "audio.mels": 1, "audio.low": 0,
    "audio.high": 0, "audio.preemphasis": 0, "audio.time_warp": 0, "audio.freq_masks": 0, "audio.freq_width": 0,
    "audio.time_masks": 0, "audio.time_width": 0, "audio.time_share": 0, "audio.ctc_weight": 0,
    "audio.cache_mib": 0, "audio.spoken_hours": 0.01, "decode.ctc_weight": 0,
    "decode.ngram_weight": 0, "decode.ngram_order": 1,
    "masked.share": 0, "masked.mask": 0, "masked.random": 0,
    "evaluate.dev_beam_size": 1, "evaluate.dev_sentences": 0, "evaluate.samples": 0,
    "data.sentences_per_batch": 0, "vocab.target_size": 0, "train.epochs": 0, "train.halve_after_epochs": 0,
    "train.halve_every_epochs": 0, "train.adam_steps": 0, "train.adam_learning_rate": 0, "train.decay_steps": 0,
    "train.decay_start": 0, "train.decay_every": 0, "train.decay_times": 0, "train.eps": 0,
}  # fmt: skip
MOST_WHOLE = 2**31 - 1
"""What every whole number is at most: steps, sizes and seeds are counted in 32 bits."""
MOST = 1e9
"""What the size of every other number is at most, where `AT_MOST` has none for it."""
AT_MOST: dict[str, float] = {  # far above all use: what is larger is a slip, and would only be noticed by the memory
    "data.max_shapes": 1000, "data.prefetch": 10_000, "data.rows_multiple": 2**20, "data.sentences_per_batch": 2**24,
    "data.tokens_per_batch": 2**30, "data.max_source_len": 2**20, "data.max_target_len": 2**20,
    "data.phrasebook_pairs": 10**8, "data.held_out_pairs": 10**7, "data.temperature": 1000, "data.shard_pairs": 10**9,
    "vocab.size": 2**24, "vocab.target_size": 2**24, "train.learning_rate": 3e38, "train.accumulate": 10**6,
    "train.eps": 1, "train.own_tokens_passes": 10_000, "train.keep_last": 10**6, "sequence.candidates": 1000,
    "masked.mask": 1, "masked.random": 1, "masked.share": 1, "audio.rate": 768_000, "audio.hop": 2**20,
    "audio.window": 2**20, "audio.fft": 2**20, "audio.mels": 4096, "audio.freq_masks": 1000, "audio.time_masks": 1000,
    "audio.spoken_hours": 10_000, "audio.low": 384_000, "audio.high": 384_000, "audio.cache_mib": 2**30,
    "decode.beam_size": 10_000, "decode.groups": 10_000, "decode.candidates": 10_000, "decode.rows": 2**20,
    "decode.length_factor": 1000, "decode.min_length_factor": 1000, "decode.length_extra": 2**20,
    "decode.min_length_extra": 2**20, "decode.max_source_len": 2**20, "decode.ngram_order": 20,
    "decode.no_repeat_ngram": 2**20, "decode.temperature": 1000, "evaluate.dev_beam_size": 10_000,
    "evaluate.samples": 10_000, "model.features": 2**17, "model.encoder_layers": 1000, "model.decoder_layers": 1000,
    "model.layers": 1000, "model.init_scale": 1000, "model.embedding_features": 2**17, "model.cells": 2**17,
    "model.readout_features": 2**17, "model.attention_init_scale": 1000, "model.attention_features": 2**17,
    "model.heads": 2**12, "model.feed_forward": 2**20, "model.max_positions": 2**20, "model.linformer": 2**20,
    "model.reduction": 64, "model.listener_layers": 1000, "model.listener_features": 2**17, "model.kernel": 10_001,
    "model.channels": 2**14, "model.speller_layers": 1000, "model.location_filters": 2**14,
    "model.location_width": 10_001, "parallel.data": 2**20, "parallel.fsdp": 2**20, "parallel.stage": 2**20,
    "parallel.tensor": 2**20, "parallel.chunks": 10_000, "parallel.unroll": 10_000,
}  # fmt: skip
SHARES = (
    "train.decay_floor", "train.label_smoothing", "train.b1", "train.b2", "train.rho", "train.ema_decay",
    "train.own_tokens", "train.momentum", "data.subword_sampling", "clean.letters", "clean.language", "model.dropout",
    "model.recurrent_dropout",
)  # fmt: skip
