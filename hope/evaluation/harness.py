"""A model for lm-evaluation-harness, so that its tasks run on a checkpoint.

  import hope, lm_eval
  from hope.evaluation.harness import HopeLM

  model = HopeLM(hope.load('runs/lm').language_model)
  results = lm_eval.simple_evaluate(model, tasks=['piqa', 'lambada_openai'])

It is the extra `eval`: pip install 'hope-jax[eval]'.
"""

from collections.abc import Sequence
from typing import Any

from hope.evaluation import generation, likelihood
from hope.evaluation.generation import Ending
from hope.evaluation.language_model import LanguageModel, check_reads_text
from hope.tasks import Request, TextExample

try:
  from lm_eval.api.model import LM
except ImportError as error:
  raise ImportError(
    'lm-evaluation-harness is not installed. Install it: '
    "pip install 'hope-jax[eval]'."
  ) from error

# Most tokens of an output, where a task names no number: as in the harness.
_TOKENS = 256


class HopeLM(LM):
  """Answers the harness's three kinds of requests.

  A model has no longest context: nothing is cut. `Choice:` an empty context is
  the separator of documents; see `hope.evaluation.likelihood`.
  """

  def __init__(self, model: LanguageModel, batch: int = 8):
    """Takes a model.

    Args:
      model: that answers.
      batch: rows that are computed at once.

    Raises:
      ValueError: for a model of numbers.
    """
    super().__init__()
    check_reads_text(model.tokenizer)
    self._model, self._batch = model, batch

  @property
  def tokenizer_name(self) -> str:
    """Says which tokens requests become, for the harness's cache."""
    return self._model.tokenizer.fingerprint()

  def loglikelihood(
    self, requests: Sequence[Any], disable_tqdm: bool = False
  ) -> list[tuple[float, bool]]:
    """Log-probabilities of continuations, and whether they are greedy.

    Args:
      requests: `args` are (context, continuation).
      disable_tqdm: nothing is shown anyway.
    """
    del disable_tqdm
    asked = [Request(*request.args) for request in requests]
    found = likelihood.log_likelihoods(self._model, asked, self._batch)
    answers = [(x.log_probability, x.greedy) for x in found]
    self._keep('loglikelihood', requests, answers)
    return answers

  def loglikelihood_rolling(
    self, requests: Sequence[Any], disable_tqdm: bool = False
  ) -> list[float]:
    """Log-probabilities of whole texts, after the separator of documents.

    Args:
      requests: `args` are (text,).
      disable_tqdm: nothing is shown anyway.
    """
    del disable_tqdm
    asked = [Request('', *request.args) for request in requests]
    found = likelihood.log_likelihoods(self._model, asked, self._batch)
    answers = [x.log_probability for x in found]
    self._keep('loglikelihood_rolling', requests, answers)
    return answers

  def generate_until(
    self, requests: Sequence[Any], disable_tqdm: bool = False
  ) -> list[str]:
    """Greedy outputs.

    Args:
      requests: `args` are (context, options), of which `until` and
        `max_gen_toks` count.
      disable_tqdm: nothing is shown anyway.

    Raises:
      ValueError: for a request to draw tokens.
    """
    del disable_tqdm
    endings: dict[Ending, list[int]] = {}
    for i, request in enumerate(requests):
      endings.setdefault(_ending(request.args[1]), []).append(i)
    outputs = [''] * len(requests)
    for ending, chosen in endings.items():
      examples = [_example(requests[i].args[0]) for i in chosen]
      for group in generation.side_by_side(
        self._model.tokenizer, examples, self._batch
      ):
        texts = generation.write(
          self._model, [examples[i] for i in group], ending, self._batch
        )
        for i, text in zip(group, texts, strict=True):
          outputs[chosen[i]] = text
    self._keep('generate_until', requests, outputs)
    return outputs

  def _keep(
    self, kind: str, requests: Sequence[Any], answers: Sequence[Any]
  ) -> None:
    """Gives answers to the harness's cache."""
    for request, answer in zip(requests, answers, strict=True):
      self.cache_hook.add_partial(kind, request.args, answer)


def _ending(options: dict[str, Any]) -> Ending:
  """Where outputs of a request end."""
  if options.get('do_sample') and options.get('temperature', 1) > 0:
    raise ValueError(
      f'do_sample=True with temperature={options.get("temperature", 1)}: '
      'outputs are greedy; set do_sample=False in the task.'
    )
  until = options.get('until') or ()
  stop = (until,) if isinstance(until, str) else tuple(until)
  return Ending(options.get('max_gen_toks', _TOKENS), stop)


def _example(prompt: str) -> TextExample:
  """An example with this prompt."""
  return TextExample(lambda: iter((prompt,)), '', (), ())
