"""Text from a trained model.

  python -m hope.generate --workdir=runs/smoke --prompt="def "

The state after the prompt is carried into decoding: O(1) work per token for
Hope, whatever was read before. Texts and prompts of every length need the same
programs, so that a second start compiles nothing.
"""

from absl import flags, logging

from hope import command_line


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags."""
  flags.DEFINE_string(
    'workdir', None, 'Directory of a run.', required=True, flag_values=values
  )
  flags.DEFINE_string(
    'prompt', 'def ', 'Text to go on from.', flag_values=values
  )
  flags.DEFINE_integer('tokens', 200, 'Tokens to draw.', flag_values=values)
  flags.DEFINE_float(
    'temperature',
    0.8,
    'Of the softmax; 0 takes the most likely token.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'top_k', 40, 'Candidates per token; 0: all.', flag_values=values
  )
  flags.DEFINE_integer('seed', 0, 'Of the sampling.', flag_values=values)


def main(values: flags.FlagValues) -> None:
  """Prints the prompt and what follows it."""
  logging.set_verbosity(logging.WARNING)

  from hope import sampling, trained  # after the flags, as jax is slow

  options = {
    name: getattr(values, name) for name in ('temperature', 'top_k', 'seed')
  }
  sampling.check_options(values.prompt, tokens=values.tokens, **options)
  _, tokenizer, graph, params = trained.load(values.workdir)
  text = sampling.continue_text(
    tokenizer, graph, params, values.prompt, values.tokens, **options
  )
  print(text)


def start() -> None:
  """Runs the program with the flags of the command line."""
  command_line.run(main, define_flags)


if __name__ == '__main__':
  start()
