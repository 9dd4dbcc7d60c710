"""BLEU and chrF of translations, each with the signature that says how it was computed.

Two ways of BLEU, because papers use both:

- `bleu`, `chrf`: sacreBLEU on the text as people read it (detokenised, cased). Use these to compare systems.
- `bleu_tokenized_lowercase`: both sides normalised, lower-cased and Moses-tokenised, then counted like
  multi-bleu.perl does. Papers on Multi30k report this one.

Post 2018, A Call for Clarity in Reporting BLEU Scores; Popović 2015, chrF.
"""

from __future__ import annotations

from collections.abc import Sequence

from sacrebleu.metrics import BLEU, CHRF
from sacremoses import MosesPunctNormalizer, MosesTokenizer

from seq2seq_jax.errors import UserError


def corpus_scores(
    hypotheses: Sequence[str], references: Sequence[str], *, target: str, lowercase_tokenized: bool = True
) -> dict[str, float | str]:
    """Scores a whole corpus of translations against one reference each.

    Args:
      hypotheses: Translations as plain text (detokenised, cased), one a sentence.
      references: As many references.
      target: Language code of the target ("de", "pt_BR"); it chooses the tokenizer of Chinese, Japanese and
        Korean, and the Moses rules.
      lowercase_tokenized: Also compute `bleu_tokenized_lowercase`.

    Returns:
      `bleu`, `chrf` and, if asked for, `bleu_tokenized_lowercase`, from 0 to 100, each with its
      `..._signature`.

    Raises:
      ValueError: if the counts differ or there are no lines.
      UserError: if sacreBLEU lacks the tokenizer of the target language.
    """
    if len(hypotheses) != len(references):
        raise ValueError(
            f"`hypotheses` and `references` must be equally many lines, "
            f"but are {len(hypotheses)} and {len(references)} instead."
        )
    if not hypotheses:
        raise ValueError("`hypotheses` must hold at least one line, but is empty instead.")
    language = _base_language(target)
    hypotheses, references = list(hypotheses), list(references)
    chrf = CHRF()
    scores: dict[str, float | str] = {}
    _add(scores, "bleu", make_bleu(language), hypotheses, references)
    _add(scores, "chrf", chrf, hypotheses, references)
    if lowercase_tokenized:
        metric = BLEU(tokenize="none", smooth_method="none", force=True)
        sides = (tokenize_lowercase(lines, language=language) for lines in (hypotheses, references))
        _add(scores, "bleu_tokenized_lowercase", metric, *sides)
    return scores


def tokenize_lowercase(lines: Sequence[str], *, language: str) -> list[str]:
    """Lower-cases, normalises punctuation and tokenises as Moses's Perl scripts do.

    Special characters are escaped (`'` becomes `&apos;`) and dashes stay, as by the defaults of
    tokenizer.perl: so were the references of Multi30k made that published scores rest on.

    Args:
      lines: Plain text.
      language: Language code; an unknown one gets the rules of English.
    """
    language = _base_language(language)
    normalizer = MosesPunctNormalizer(lang=language)
    tokenizer = MosesTokenizer(lang=language)
    # The Perl script sees the line's end, and some of its rules about quotes match it: sacremoses needs it too.
    return [tokenizer.tokenize(normalizer.normalize(line.lower() + "\n"), return_str=True) for line in lines]


def _base_language(code: str) -> str:
    """ "pt_BR" and "pt-BR" to "pt"."""
    return code.replace("-", "_").split("_")[0].lower()


def make_bleu(language: str) -> BLEU:
    """sacreBLEU's own choice of tokenizer: 13a, or that of Chinese, Japanese or Korean."""
    try:
        return BLEU(trg_lang=_base_language(language))
    except RuntimeError as error:
        raise UserError(
            f"BLEU of target language `{language}` needs sacreBLEU's tokenizer for it, which is not installed: "
            f'run `pip install "sacrebleu[{language}]"`.'
        ) from error


def _add(
    scores: dict[str, float | str], name: str, metric: BLEU | CHRF, hypotheses: list[str], references: list[str]
) -> None:
    # The signature knows the number of references only after scoring.
    scores[name] = float(metric.corpus_score(hypotheses, [references]).score)
    scores[f"{name}_signature"] = str(metric.get_signature())
