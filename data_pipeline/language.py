"""Which language a text is in, by py3langid: a naive Bayes classifier of byte n-grams whose model (97 languages, under
5 MB) ships inside the package, so that nothing is downloaded and the answer depends on the installed version alone.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from data_pipeline.errors import DataError

#: Characters that are looked at, half from the start and half from the middle: more text changes almost no verdict
#: and costs time in proportion; the middle is there because pages begin with menus.
SAMPLE = 2000


def detect_language(text: str) -> tuple[str, float]:
    """The likeliest language of `text` as an ISO 639-1 code, and its probability by the model, 0 to 1."""
    if len(text) > SAMPLE:
        middle = len(text) // 2
        text = text[: SAMPLE // 2] + "\n" + text[middle : middle + SAMPLE // 2]
    language, probability = _identifier().classify(text)
    return str(language), float(probability)


def check_languages(languages: tuple[str, ...]) -> None:
    """Raises DataError if the model does not know one of the codes."""
    known = sorted(str(label) for label in _identifier().labels)
    for language in languages:
        if language not in known:
            raise DataError(f"the language filter does not know {language!r}: choose among {', '.join(known)}.")


@cache
def _identifier() -> Any:
    # Imported here: the model takes a moment to load and only builds that filter by language need it.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
