"""Text from a trained model.

  hope-generate --workdir=runs/smoke --prompt="def "

`python -m hope.generate` is the same.
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

  from hope import trained  # after the flags, as jax is slow

  print(
    trained.generate(
      values.workdir,
      values.prompt,
      tokens=values.tokens,
      temperature=values.temperature,
      top_k=values.top_k,
      seed=values.seed,
    )
  )


def start() -> None:
  """Runs the program with the flags of the command line."""
  command_line.run(main, define_flags, __doc__)
