"""What a worker of `hope.accelerator` runs in its tests; imports little."""

import os
import time


def serve(pipe):
  """Does what it is told: ('sleep', seconds), ('end', code) or ('say', x)."""
  while True:
    try:
      action, value = pipe.recv()
    except EOFError:
      return
    pipe.send(('stage', action))
    if action == 'end':
      os._exit(value)
    if action == 'sleep':
      time.sleep(value)
    pipe.send(('skipped', 'told so') if action == 'skip' else ('done', value))
