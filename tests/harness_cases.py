"""Tasks of lm-evaluation-harness, and the same by our own evaluators.

`evaluation_harness_test.py` runs these where lm-eval is installed.
"""

import json
import math
import os

from evaluation_likelihood_test import tiny_model
import pytest

from hope.evaluation import generation, likelihood
from hope.evaluation.generation import Ending
from hope.tasks import ChoiceExample, Request, TextExample

WORDS = (
  'the memory learns slowly and the kernel forgets what it read while a level '
  'waits for its turn to learn from all that came before it'
).split()
GUESSES = [' '.join(WORDS[i : i + 9]) for i in range(14)]
GOALS = [
  {
    'goal': f'{WORDS[i]} {WORDS[i + 3]}?'.capitalize(),
    'sol1': ' '.join(WORDS[i : i + 2 + i % 5]),
    # Letters of two bytes: lengths in characters and bytes differ.
    'sol2': ' '.join(WORDS[i + 4 : i + 7]).replace('e', 'é'),
    'label': i % 2,
  }
  for i in range(18)
]
TASKS = {
  'local_lambada': {
    'output_type': 'loglikelihood',
    'doc_to_text': "{{text.split(' ')[:-1]|join(' ')}}",
    'doc_to_target': "{{' '+text.split(' ')[-1]}}",
    'metric_list': [
      {'metric': 'perplexity', 'aggregation': 'perplexity'},
      {'metric': 'acc', 'aggregation': 'mean'},
    ],
  },
  'local_piqa': {
    'output_type': 'multiple_choice',
    'doc_to_text': 'Question: {{goal}}\nAnswer:',
    'doc_to_target': 'label',
    'doc_to_choice': '{{[sol1, sol2]}}',
    'metric_list': [
      {'metric': 'acc', 'aggregation': 'mean'},
      {'metric': 'acc_norm', 'aggregation': 'mean'},
      {'metric': 'acc_bytes', 'aggregation': 'mean'},
    ],
  },
  'local_text': {
    'output_type': 'loglikelihood_rolling',
    'doc_to_text': '',
    'doc_to_target': '{{text}}',
    'metric_list': [
      {'metric': 'bits_per_byte', 'aggregation': 'bits_per_byte'}
    ],
  },
  'local_writing': {
    'output_type': 'generate_until',
    'doc_to_text': '{{text}}',
    'doc_to_target': 'x',
    'generation_kwargs': {
      'until': ['e', 'o'],
      'max_gen_toks': 12,
      'do_sample': False,
    },
    'metric_list': [{'metric': 'exact_match', 'aggregation': 'mean'}],
  },
}


@pytest.fixture(scope='module')
def model():
  """A byte model."""
  return tiny_model()


@pytest.fixture(scope='module')
def results(model, tmp_path_factory):
  """What the harness makes of the tasks, from files of a folder alone."""
  folder = tmp_path_factory.mktemp('tasks')
  for name, documents in (
    ('guesses', [{'text': x} for x in GUESSES]),
    ('goals', GOALS),
  ):
    lines = ''.join(json.dumps(x) + '\n' for x in documents)
    (folder / f'{name}.json').write_text(lines)
  for name, task in TASKS.items():
    file = 'goals' if name == 'local_piqa' else 'guesses'
    content = {
      'task': name,
      'dataset_path': 'json',
      'dataset_kwargs': {'data_files': {'test': f'{folder}/{file}.json'}},
      'test_split': 'test',
      **task,
    }
    (folder / f'{name}.yaml').write_text(json.dumps(content))
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(os.environ, 'HF_HUB_OFFLINE', '1')
    patch.setitem(os.environ, 'HF_DATASETS_OFFLINE', '1')
    patch.setitem(os.environ, 'HF_HOME', str(folder / 'cache'))
    import lm_eval
    from lm_eval.tasks import TaskManager

    from hope.evaluation.harness import HopeLM

    return lm_eval.simple_evaluate(
      HopeLM(model, batch=4),
      tasks=list(TASKS),
      task_manager=TaskManager(
        include_path=str(folder), include_defaults=False
      ),
      bootstrap_iters=0,
    )


def of(results, task, metric):
  return results['results'][task][f'{metric},none']


def test_lambada_has_the_numbers_of_our_evaluator(model, results):
  examples = []
  for text in GUESSES:
    context, _, last = text.rpartition(' ')
    examples.append(ChoiceExample((Request(context, f' {last}'),), 0))
  found = likelihood.answers(model, examples)
  perplexity = likelihood.perplexity([x['log_likelihood'] for x in found])
  assert of(results, 'local_lambada', 'perplexity') == pytest.approx(
    perplexity, rel=1e-6
  )
  accuracy = sum(x['accuracy'] for x in found) / len(found)
  assert of(results, 'local_lambada', 'acc') == accuracy


def test_piqa_has_the_numbers_of_our_evaluator(model, results):
  examples = [
    ChoiceExample(
      tuple(
        Request(f'Question: {x["goal"]}\nAnswer:', f' {x[name]}')
        for name in ('sol1', 'sol2')
      ),
      x['label'],
    )
    for x in GOALS
  ]
  found = likelihood.answers(model, examples)
  for theirs, ours in (
    ('acc', 'accuracy'),
    ('acc_norm', 'accuracy_norm'),
    ('acc_bytes', 'accuracy_bytes'),
  ):
    mean = sum(x[ours] for x in found) / len(found)
    assert of(results, 'local_piqa', theirs) == pytest.approx(mean)
  # Else the lengths say nothing.
  assert any(x['accuracy'] != x['accuracy_norm'] for x in found)
  assert any(x['accuracy_norm'] != x['accuracy_bytes'] for x in found)


def test_a_rolling_text_has_its_likelihood(model, results):
  found = likelihood.log_likelihoods(model, [Request('', x) for x in GUESSES])
  nats = -sum(x.log_probability for x in found)
  size = sum(len(x.encode()) for x in GUESSES)
  assert of(results, 'local_text', 'bits_per_byte') == pytest.approx(
    nats / size / math.log(2), rel=1e-6
  )


def test_outputs_are_those_of_our_evaluator(model, results):
  samples = sorted(
    results['samples']['local_writing'], key=lambda x: x['doc_id']
  )
  for text, sample in zip(GUESSES, samples, strict=True):
    example = TextExample(lambda text=text: iter((text,)), '', (), ())
    (output,) = generation.write(model, [example], Ending(12, ('e', 'o')))
    assert sample['resps'] == [[output]]


def test_what_it_cannot_do_is_refused(model):
  from hope.evaluation import harness

  with pytest.raises(ValueError, match='outputs are greedy'):
    harness._ending({'do_sample': True, 'temperature': 0.7})
  assert harness._ending({'until': 'a'}) == Ending(256, ('a',))
