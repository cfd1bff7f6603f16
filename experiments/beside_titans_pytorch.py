"""Speed of Titans' memory alone (LMM) beside titans-pytorch's: no table.

  python -m venv other && other/bin/pip install torch titans-pytorch==0.5.5
  python -m experiments.beside_titans_pytorch --torch=other/bin/python

Whole training steps (forward, backward, clip, AdamW) of 4 layers of width 256,
4 heads, chunks of 64 tokens, 4 rows of 512 bytes, float32: each model in a
process of its own, on one thread, a step of each in turn. All have 3.40M
parameters by the width of a SwiGLU. CPU seconds are counted, of which a busy
machine takes fewer away than of the clock's; still, only ratios of one run
count. titans-pytorch runs twice: its gradients are taken at the weights of the
chunk's start, as LMM's are, or (its default) at those of the sequence's start,
which never see what was written.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

_PARAMETERS = 3_400_000
_WIDTH, _LAYERS, _HEADS, _CHUNK, _ROWS, _SEQ_LEN = 256, 4, 4, 64, 4, 512
_VOCAB_SIZE = 257
# Name: pattern, and whether the layers are a loop.
OURS = {
  'LMM': ('titans(lmm)+swiglu', False),
  'LMM, a loop': ('titans(lmm)+swiglu', True),
  'Gated DeltaNet': ("delta(rule='gated_deltanet')+swiglu", False),
  'attention': ('attention+swiglu', False),
}
THEIRS = {
  "titans-pytorch, gradient at the chunk's start": _CHUNK,
  "titans-pytorch, gradient at the sequence's start": None,
}


def of_torch(name: str):
  """(step, parameters, FLOPs of a step or None) of titans-pytorch."""
  import titans_pytorch  # pyrefly: ignore[missing-import]
  import torch  # pyrefly: ignore[missing-import]
  from torch import nn  # pyrefly: ignore[missing-import]

  torch.set_num_threads(1)
  torch.manual_seed(0)

  def memory():
    head = _WIDTH // _HEADS
    return titans_pytorch.NeuralMemory(
      dim=_WIDTH,
      chunk_size=_CHUNK,
      batch_size=THEIRS[name],
      dim_head=head,
      heads=_HEADS,
      model=titans_pytorch.MemoryMLP(head, depth=2, expansion_factor=1.0),
      qk_rmsnorm=True,
    )

  class Net(nn.Module):
    """Embedding, blocks of memory and SwiGLU, tied head."""

    def __init__(self, hidden):
      super().__init__()
      self.embed = nn.Embedding(_VOCAB_SIZE, _WIDTH)
      self.memories = nn.ModuleList(memory() for _ in range(_LAYERS))
      self.norms = nn.ModuleList(nn.RMSNorm(_WIDTH) for _ in range(_LAYERS + 1))
      self.up = nn.ModuleList(
        nn.Linear(_WIDTH, 2 * hidden, bias=False) for _ in range(_LAYERS)
      )
      self.down = nn.ModuleList(
        nn.Linear(hidden, _WIDTH, bias=False) for _ in range(_LAYERS)
      )

    def forward(self, tokens):
      x = self.embed(tokens)
      for layer in range(_LAYERS):
        x = x + self.memories[layer](x)[0]
        up, gate = self.up[layer](self.norms[layer](x)).chunk(2, dim=-1)
        x = x + self.down[layer](nn.functional.silu(gate) * up)
      return self.norms[-1](x) @ self.embed.weight.T

  def count(net):
    return sum(p.numel() for p in net.parameters())

  small = count(Net(1))
  net = Net(1 + (_PARAMETERS - small) // (count(Net(2)) - small))
  for parameter in net.parameters():  # some share memory between heads
    parameter.data = parameter.data.clone()
  optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
  text = torch.randint(0, 256, (_ROWS, _SEQ_LEN + 1))

  def step():
    optimizer.zero_grad()
    logits = net(text[:, :-1]).flatten(0, 1)
    nn.functional.cross_entropy(logits, text[:, 1:].flatten()).backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()

  return step, count(net), None


def of_hope(name: str):
  """(step, parameters, FLOPs of a step) of this project."""
  from experiments import throughput as settings
  from hope.config import resolve
  from hope.matching import count_parameters, match_parameters
  from hope.parallel import mesh
  from hope.profiling import throughput
  from hope.profiling.flops import flops_per_token

  pattern, loop = OURS[name]
  config = settings.get_config()
  config.model.pattern = pattern
  config.compute.unroll = 1 if loop else _LAYERS
  config = match_parameters(config, _PARAMETERS, _VOCAB_SIZE)
  count = count_parameters(config, _VOCAB_SIZE)
  config = resolve(config, _VOCAB_SIZE)
  run = throughput.Steps(config, mesh.one_device())
  return run.step, count, flops_per_token(config, _SEQ_LEN) * run.tokens


def work(name: str) -> None:
  """Answers each line of the standard input: 'step', or 'peak'."""
  step, count, flops = (of_torch if name in THEIRS else of_hope)(name)
  step()
  print(json.dumps({'parameters': count, 'flops': flops}), flush=True)
  for line in sys.stdin:
    if line.strip() == 'peak':
      from hope.profiling import throughput

      print(throughput.matmul_peak(), flush=True)
    else:
      start = time.process_time()
      step()
      print(time.process_time() - start, flush=True)


class _Worker:
  """A model in a process of its own."""

  def __init__(self, name: str, python: str):
    file = str(pathlib.Path(__file__).resolve())
    home = str(pathlib.Path(file).parents[1])
    process = subprocess.Popen(
      [python, '-W', 'ignore', file, f'--work={name}'],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ | {'PYTHONPATH': home, 'OMP_NUM_THREADS': '1'},
    )
    assert process.stdin and process.stdout
    self._questions, self._answers = process.stdin, process.stdout
    self.facts = json.loads(self._line())
    self.seconds: list[float] = []

  def _line(self) -> str:
    line = self._answers.readline()
    if not line:
      raise SystemExit('a process ended; its error is above')
    return line

  def ask(self, what: str) -> float:
    self._questions.write(f'{what}\n')
    self._questions.flush()
    return float(self._line())

  def close(self) -> None:
    self._questions.close()


def compare(python: str, rounds: int) -> dict:
  """Times a step of each in turn."""
  workers = {}
  for name in THEIRS | OURS:
    print(f'starting {name}', flush=True)
    workers[name] = _Worker(name, python if name in THEIRS else sys.executable)
  peaks = []
  for turn in range(2 + rounds):
    peaks.append(workers['LMM'].ask('peak'))
    for worker in workers.values():
      seconds = worker.ask('step')
      if turn >= 2:
        worker.seconds.append(seconds)
  found = {}
  for name, worker in workers.items():
    seconds = statistics.median(worker.seconds)
    flops = worker.facts['flops']
    found[name] = {
      'parameters': worker.facts['parameters'],
      'tokens_per_cpu_second': _ROWS * _SEQ_LEN / seconds,
      'share_of_matmul_peak': flops and flops / seconds / max(peaks),
      'seconds': [round(x, 4) for x in worker.seconds],
    }
    worker.close()
  return {'matmul_peak': max(peaks), 'models': found}


def main() -> None:
  """Prints a row for each model."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--torch', help='python that has titans-pytorch')
  parser.add_argument('--rounds', type=int, default=8)
  parser.add_argument('--json', help='file for the numbers')
  parser.add_argument('--work', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.work:
    work(args.work)
    return
  if not args.torch:
    parser.error(
      '--torch=PYTHON is missing: that of a venv with titans-pytorch'
    )
  result = compare(args.torch, args.rounds)
  for name, values in result['models'].items():
    share = values['share_of_matmul_peak']
    print(
      f'{name:50s} {values["parameters"]:,} parameters  '
      f'{values["tokens_per_cpu_second"]:6,.0f} tokens per CPU second'
      + ('' if share is None else f'  {share:.1%} of the matmul peak')
    )
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
  main()
