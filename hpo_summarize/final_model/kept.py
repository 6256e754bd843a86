"""The weights that a search has kept of a trial, as a model that summarises."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel
from transformers import AutoTokenizer, set_seed

from hpo_summarize.components import Experiment
from hpo_summarize.errors import ModelError
from hpo_summarize.models.lora import load_adapter
from hpo_summarize.models.outputs import OUTPUTS, difference_from
from hpo_summarize.search_space import TrialSpec
from hpo_summarize.study.trials import Candidate
from hpo_summarize.summarizer import Summarizer, make_summarizer


def load_kept(experiment: Experiment, candidate: Candidate) -> Summarizer:
    """The model of a trial's best epoch, with all the trial's values, and not merged.

    A checkpoint of an adapter has neither the depth nor the new embeddings of its base, and none
    has what a search of the decoding found later: the model is built from the recipe and the
    values, as for the trial, and gets the kept weights.

    Raises:
        StudyError: The search has kept no weights.
        ModelError: They do not fit the recipe.
    """
    checkpoint = candidate.checkpoint(Path(experiment.recipe.output_dir))
    # A tokenizer that was trained for the search is only here.
    experiment.tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    set_seed(experiment.seed)  # Some weights that are not kept are drawn.
    model = experiment.build_model(TrialSpec.of(candidate.params))
    try:
        if isinstance(model, PeftModel):
            load_adapter(model, checkpoint)
        else:
            decoding = model.generation_config
            model = type(model).from_pretrained(checkpoint, local_files_only=True)
            model.generation_config = decoding
    except Exception as error:  # Whatever a damaged file or another shape makes them raise.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"the weights in {checkpoint} do not fit this recipe ({reason}); use the recipe that "
            "the search ran with"
        ) from None
    if differs := difference_from(checkpoint / OUTPUTS, model):
        raise ModelError(
            f"the weights in {checkpoint} do not give the model that the search trained "
            f"({differs}); use the recipe and the checkpoint that the search ran with, or retrain "
            "the trial with scripts/train.py"
        )
    limit = experiment.recipe.data.max_dialogue_tokens
    return make_summarizer(model, experiment.tokenizer, limit, experiment.recipe)
