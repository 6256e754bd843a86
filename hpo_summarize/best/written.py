"""The best trials as `best_params.json` has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpo_summarize.best.candidate import Candidate, first_of_each
from hpo_summarize.errors import StudyError

BEST_PARAMS = "best_params.json"
_NEXT = f"run scripts/search.py again, which writes it anew, or name another {BEST_PARAMS}"


def read_candidates(path: Path, maximize: bool) -> list[Candidate]:
    """The trials in `best_params.json`: the best one, or the front, best in its first objective.

    Of several decodings of one trained trial in the front, the best in the first objective stands
    for it.

    Raises:
        StudyError: The file is not there, is damaged, or holds no result.
    """
    content = _read_json(path)
    if content.get("message"):
        raise StudyError(f"{path}: the search has no result yet. {content['message']}")
    try:
        if "pareto_front" in content:
            found = [_from_front(item, content) for item in content["pareto_front"]]
            sign = -1 if maximize else 1
            found.sort(key=lambda one: (sign * one.values[0], one.number))
            return first_of_each(found)
        return [
            Candidate(
                int(content["best_trial_number"]),
                dict(content["best_params"]),
                float(content["best_epoch"]),
                (float(content["best_value"]),),
                str(content["study_name"]),
                content.get("max_new_tokens"),
            )
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise StudyError(f"{path} is no {BEST_PARAMS} of a search ({error!r}); {_NEXT}") from None


def _from_front(item: Mapping[str, Any], content: Mapping[str, Any]) -> Candidate:
    return Candidate(
        int(item["number"]),
        dict(item["params"]),
        float(item["epoch"]),
        tuple(float(item["values"][name]) for name in content["objectives"]),
        str(content["study_name"]),
        content.get("max_new_tokens"),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(
            f"there is no file {path}; run scripts/search.py with this recipe first, or give the "
            f"{BEST_PARAMS} of a search with --best_params"
        ) from None
    except OSError as error:
        raise StudyError(f"{path} cannot be read ({error.strerror}); {_NEXT}") from None
    except ValueError as error:
        raise StudyError(f"{path} is damaged ({error}); {_NEXT}") from None
    if not isinstance(content, dict):
        raise StudyError(f"{path} is no {BEST_PARAMS}, it holds {content!r:.80}; {_NEXT}")
    return content
