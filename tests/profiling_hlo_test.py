# ruff: noqa: E501  # The compiler writes long lines.
"""What is read from the text of a compiled program."""

import jax
from jax import lax
from jax.experimental import pallas as pl
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
import pytest

from hope.profiling import topologies
from hope.profiling.hlo import Program
from hope.profiling.roofline import executed_flops

# A loop of 24 turns; in it, a slice of a large array, a value in the memory
# beside the cores, and a part of a gather that begins and ends outside.
TEXT = """
HloModule jit_step, entry_computation_layout={()->f32[]}

%condition (p: (s32[], f32[24,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(24)
  %p = (s32[], f32[24,8]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%sliced (x: f32[24,8], i: s32[]) -> f32[1,8] {
  %x = f32[24,8]{1,0:T(8,128)} parameter(0)
  %i.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %ds = f32[1,8]{1,0} dynamic-slice(%x, %i.1, %zero), dynamic_slice_sizes={1,8}
}

%carried (y: f32[1,8], a: bf16[4,8], b: bf16[8,8]) -> (f32[1,8], bf16[8,8]) {
  %y = f32[1,8]{1,0} parameter(0)
  %a = bf16[4,8]{1,0} parameter(1)
  %b = bf16[8,8]{1,0} parameter(2)
  %gather.1 = bf16[8,8]{1,0} all-gather(%a), channel_id=7, dimensions={0}
  %neg = f32[1,8]{1,0} negate(%y)
  ROOT %both = (f32[1,8]{1,0}, bf16[8,8]{1,0}) tuple(%neg, %gather.1)
}

%body (p.1: (s32[], f32[24,8])) -> (s32[], f32[24,8]) {
  %p.1 = (s32[], f32[24,8]{1,0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%p.1), index=0
  %all = f32[24,8]{1,0} get-tuple-element(%p.1), index=1
  %row = f32[1,8]{1,0:T(8,128)S(1)} fusion(%all, %i.2), kind=kLoop, calls=%sliced
  %shard = bf16[4,8]{1,0} constant({...})
  %buffer = bf16[8,8]{1,0} constant({...})
  %part = (f32[1,8]{1,0}, bf16[8,8]{1,0}) fusion(%row, %shard, %buffer), kind=kLoop, calls=%carried
  %sum = f32[1,8]{1,0} all-reduce(%row), channel_id=8, to_apply=%add, metadata={op_name="jit(step)/while/body/sum"}
  ROOT %next = (s32[], f32[24,8]{1,0}) tuple(%i.2, %all)
}

ENTRY %main (x.1: f32[24,8]) -> f32[24,8] {
  %x.1 = f32[24,8]{1,0} parameter(0)
  %start = s32[] constant(0)
  %shard.1 = bf16[4,8]{1,0} constant({...})
  %gather = bf16[8,8]{1,0} all-gather(%shard.1), channel_id=7, dimensions={0}
  %init = (s32[], f32[24,8]{1,0}) tuple(%start, %x.1)
  %loop = (s32[], f32[24,8]{1,0}) while(%init), condition=%condition, body=%body
  ROOT %out = f32[24,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_loops_slices_and_memory_beside_the_cores():
  program = Program(TEXT)
  gather, total = program.collectives()[1], program.collectives()[0]
  assert (total.kind, total.nbytes, total.times) == ('all-reduce', 32, 24)
  assert total.op_name == 'jit(step)/while/body/sum'
  # One gather, whatever the number of its parts.
  assert (gather.kind, gather.nbytes, gather.times) == ('all-gather', 128, 1)
  sliced = 24 * (32 + 4)  # a row is read, and its index; it goes to S(1)
  negated = 24 * 32  # read from S(1), written to main memory
  moved = 2 * (24 * 32 + 128)  # by the collectives
  assert program.main_memory_bytes() == sliced + negated + moved


def test_a_loop_whose_turns_are_not_known():
  text = TEXT.replace('constant(24)', 'constant(-1)')
  with pytest.raises(ValueError, match='How often the loop loop runs'):
    Program(text).collectives()
  with pytest.raises(ValueError, match='no entry computation'):
    Program('')


def test_a_program_of_this_machine():
  x = jnp.ones((64, 32))

  def sums(x):
    return lax.scan(lambda c, row: (c + row, c * row), x[0], x)

  text = jax.jit(sums).lower(x).compile().as_text()
  program = Program(text)
  loops = [i for _, i, _ in program.instructions if i.opcode == 'while']
  assert [program.trip_count(loop) for loop in loops] == [64]
  text = jax.jit(lambda x: x + 1).lower(x).compile().as_text()
  assert Program(text).main_memory_bytes() == 2 * x.nbytes
  assert Program(text).collectives() == []


def test_executed_flops_count_loops_recomputation_and_precision():
  x, w = jnp.ones((4, 8)), jnp.ones((3, 8, 8))
  one = 2 * 4 * 8 * 8

  def forward(w, precision=None, remat=False):
    layer = lambda x, w: (jnp.matmul(x, w, precision=precision), None)
    if remat:
      layer = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w) @ w, None))
    return lax.scan(layer, x, w)[0].sum()

  count = lambda f: executed_flops(jax.make_jaxpr(f)(w).jaxpr)
  assert count(forward) == 3 * one
  assert count(lambda w: forward(w, lax.Precision.HIGHEST)) == 6 * 3 * one
  assert count(jax.grad(forward)) == 3 * 3 * one
  # Two products forward, four backward, the first anew.
  assert count(jax.grad(lambda w: forward(w, remat=True))) == 3 * 7 * one


def test_executed_flops_of_kernels_on_several_devices():
  def kernel(x, y):
    y[...] = x[...] @ x[...]

  def product(x):
    call = pl.pallas_call(
      kernel,
      grid=(4,),
      in_specs=[pl.BlockSpec((None, 8, 8), lambda i: (i, 0, 0))],
      out_specs=pl.BlockSpec((None, 8, 8), lambda i: (i, 0, 0)),
      out_shape=jax.ShapeDtypeStruct((4, 8, 8), x.dtype),
      interpret=True,
    )
    return call(x)

  mesh = AbstractMesh((2,), ('data',), (AxisType.Auto,))
  spec = PartitionSpec('data')
  shared = jax.shard_map(
    product, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
  )
  x = jax.ShapeDtypeStruct((8, 8, 8), jnp.float32)
  found = executed_flops(jax.make_jaxpr(shared)(x).jaxpr)
  assert found == 8 * 2 * 8**3


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('v5e-256', 'write GENERATION:AxB'),
    ('v9:2x2', 'one of v4, v5e, v5p, h100, v6e'),
    ('h100:8', 'needs --gpu_target=FILE'),
    ('h100:2x4', 'write h100:N for N GPUs'),
    ('v5e:6x6', 'does not exist; try v5e:4x8'),
    ('v5p:4x4x5', 'does not exist; try v5p:4x4x4'),
  ],
)
def test_topologies_that_do_not_exist(name, message):
  with pytest.raises(ValueError, match=message):
    topologies.open_topology(name)
