"""3.4: the properties, each with many drawn cases, by the tests that hold them in the suite."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from rows import ROOT, Job, Row, environment

MODELS = "tests/contract/test_properties_models.py::"
SEARCH = "tests/contract/test_properties_search.py::"
TEXT = "tests/contract/test_properties_text.py::"
EQUAL_STEPS = "tests/contract/test_sharding.py::test_three_steps_on_eight_devices_are_those_of_one"
HELD_BY = {
    "pad_invariance": [MODELS + "test_padding_changes_nothing"],
    "batch_invariance": [
        MODELS + "test_a_row_alone_is_what_it_is_among_others",
        "tests/decode/test_invariance.py::test_in_float32_no_hypothesis_depends_on_the_batch",
    ],
    "causality": [MODELS + "test_a_token_changes_nothing_before_it"],
    "cache_equals_full": [MODELS + "test_step_by_step_is_what_it_is_at_once"],
    "beam1_is_greedy": [SEARCH + "test_a_beam_of_one_is_greedy_search"],
    "beam_not_worse": [
        SEARCH + "test_a_beam_over_everything_is_enumeration_and_a_narrower_one_finds_nothing_better",
    ],
    "ctc_brute_force": [
        SEARCH + "test_the_loss_of_ctc_is_the_sum_over_all_paths",
        SEARCH + "test_a_prefix_beam_with_room_for_all_lists_everything_that_can_be_spelt",
    ],
    "tokenizer_round_trip": [
        "tests/data/test_vocab.py::test_bytes_give_back_any_text_as_nfkc_has_it",
        "tests/data/test_vocab.py::test_nothing_is_unknown_to_bytes",
    ],
    "wer_reference": [TEXT + "test_error_rates_are_those_of_jiwer_and_of_the_whole_table"],
    "bleu_reference": [TEXT + "test_scores_are_sacrebleu_s_to_the_last_bit_and_those_by_hand"],
    "lr_schedule_monotone": [
        "tests/train/test_schedule_properties.py::test_rates_are_the_formula_and_rise_and_fall_where_they_should"
    ],
    "sharding_no_op": [EQUAL_STEPS],
    "srt_vtt_round_trip": [TEXT + "test_subtitles_are_read_back_as_they_were_in_order_and_without_overlap"],
    "config_round_trip": [TEXT + "test_a_saved_config_is_read_back_as_it_was"],
    "text_normaliser_idempotent": ["tests/evaluate/test_speech.py::test_the_rule_twice_changes_nothing_more"],
}
"""Property of the catalogue → the tests that hold it. Those of the plan, of batches and of files are beside them."""
OTHERS = [
    "tests/data/test_audio.py",
    "tests/data/test_clean.py",
    "tests/data/test_mixture.py",
    "tests/data/test_packing.py",
    "tests/data/test_pipeline.py",
    "tests/data/test_plan.py",
    "tests/data/test_sources.py",
    "tests/parallel/test_hosts.py",
    "tests/serve/test_silences.py",
]
"""Files with more properties, of which those that hypothesis draws for are run."""


def check_properties(job: Job) -> list[Row]:
    """Runs them with `job.count` cases each; the meshes of `sharding_no_op` are listed and not drawn."""
    named = sorted({test for tests in HELD_BY.values() for test in tests})
    cases, examples = run_tests(job, "named", named, [])
    rest, more = run_tests(job, "others", OTHERS, ["-m", "hypothesis"])
    cases |= rest
    held = {name: all(is_held(cases, test) for test in tests) for name, tests in HELD_BY.items()}
    for name, good in held.items():
        job.tell(f"{name}: {'holds' if good else 'DOES NOT HOLD'}")
    passed = sum(cases.values())
    return [
        Row(
            f"3.4: properties, {job.count:,} drawn cases each",
            f"{len(held)} of {len(held)} hold",
            f"{sum(held.values())} of {len(held)} hold",
            all(held.values()),
            {"held": held},
        ),
        Row(
            "3.4: tests of properties, those of plans, batches and files included",
            f"{len(cases)} of {len(cases)}",
            f"{passed} of {len(cases)}, {examples + more:,} drawn cases",
            passed == len(cases) and examples + more > 0,
            {"failed": sorted(name for name, good in cases.items() if not good)},
        ),
    ]


def is_held(cases: dict[str, bool], test: str) -> bool:
    """Whether a test ran, and all of its parameters passed."""
    file, _, name = test.partition("::")
    own = [good for case, good in cases.items() if case.partition("[")[0] == f"{file}::{name}"]
    return bool(own) and all(own)


def run_tests(job: Job, name: str, tests: list[str], options: list[str]) -> tuple[dict[str, bool], int]:
    """Test → whether it passed, and how many drawn cases passed in all; a test that was skipped is left out."""
    report, log = job.folder / f"{name}.xml", job.folder / f"{name}.log"
    drawn = {"SEQ2SEQ_JAX_EXAMPLES": str(job.count), "SEQ2SEQ_JAX_CASES": str(job.count)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n0", "-o", "junit_family=xunit1", *options]
    command += [f"--junitxml={report}", f"--hypothesis-seed={job.seed}", "--hypothesis-show-statistics", *tests]
    job.tell(f"{name}: pytest of {len(tests)} tests or files")
    with open(log, "w") as file:
        subprocess.run(command, stdout=file, stderr=file, env=environment(**drawn), cwd=ROOT, check=False)
    if not report.exists():
        raise RuntimeError(f"pytest did not run: {log.read_text()[-2000:]}")
    examples = sum(int(count) for count in re.findall(r"(\d+) passing", log.read_text()))
    cases: dict[str, bool] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = {child.tag for child in case}
        if "skipped" not in outcome:
            file = case.get("file") or os.path.join(*(case.get("classname") or "").split(".")) + ".py"
            cases[f"{Path(file).as_posix()}::{case.get('name')}"] = not outcome & {"failure", "error"}
    failed = [one for one, good in cases.items() if not good]
    if failed:
        job.tell(f"failed: {', '.join(failed)}; {log.read_text()[-3000:]}")
    return cases, examples
