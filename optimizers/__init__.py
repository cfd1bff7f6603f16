"""The optimizers of Nested Learning (arXiv:2512.24695), for optax.

Each is an `optax.GradientTransformation`: it goes into `optax.chain`,
`optax.partition`, `flax.nnx.Optimizer` or a loop of your own.

  import optax
  import optimizers

  tx = optimizers.m3(0.02, axes=optimizers.stacked_matrix_axes)
  state = tx.init(params)
  updates, state = tx.update(gradients, state, params)
  params = optax.apply_updates(params, updates)

Optimizers; they take a learning rate, a number or a schedule:

  m3                            Algorithm 1: two momenta of different time
                                scales, orthogonalised
  preconditioned_momentum       Eq. 46-47: momentum of P g
  delta_momentum                Eq. 48-49: momentum that forgets what it holds
                                along the new gradient
  deep_momentum                 Eq. 50: an MLP that learns the gradients
  feature_momentum              Eq. 51: momentum of phi(g)
  delta_gradient_descent        Eq. 56-57: steps that make room for what they
                                write; needs the inputs of the layers
  generalized_gradient_descent  Definition 5: the same with an objective and a
                                retention of one's own
  associative_momentum          Eq. 101-111: the memory that maps gradients best
                                to a statistic of them; Adam, AdaGrad

Levels of parameters that are updated at their own pace (Eq. 71):

  multi_timescale               a period and a transformation for each level
  every                         one such level
  label_by_path                 says which parameters are in which level

The same rules without a learning rate, for `optax.chain`:

  scale_by_m3
  scale_by_preconditioned_momentum
  scale_by_delta_momentum
  scale_by_deep_momentum
  scale_by_feature_momentum
  scale_by_associative_momentum

Which leaves are matrices, and what is done to them:

  matrix_axes                   leaves of two axes are
  stacked_matrix_axes           the last two axes of any leaf are
  MatrixAxes                    these axes of a leaf are
  SplitAxes                     a leaf holds several, side by side
  on_matrices                   makes any rule see matrices
  orthogonalize                 a tree of matrices, by Newton-Schulz
  newton_schulz                 a stack of matrices
  second_moments                of the inputs of layers, for
                                delta_gradient_descent
  check                         refuses arguments that no rule can work with

States, for those who read them:

  ScaleByM3State
  MomentumState
  DeepMomentumState
  AssociativeMomentumState
  GradientDescentState
  EveryState

The folder imports only jax, numpy and optax. `pip install ./optimizers`
installs it alone, as `hope_optimizers`. Its README has snippets for Flax,
Equinox and plain functions, and results.
"""

from .arguments import check
from .associative_momentum import (
  AssociativeMomentumState,
  associative_momentum,
  scale_by_associative_momentum,
)
from .deep_momentum import (
  DeepMomentumState,
  deep_momentum,
  scale_by_deep_momentum,
)
from .gradient_descent import (
  GradientDescentState,
  delta_gradient_descent,
  generalized_gradient_descent,
  second_moments,
)
from .matrices import (
  MatrixAxes,
  SplitAxes,
  matrix_axes,
  on_matrices,
  stacked_matrix_axes,
)
from .momentum import (
  MomentumState,
  delta_momentum,
  feature_momentum,
  preconditioned_momentum,
  scale_by_delta_momentum,
  scale_by_feature_momentum,
  scale_by_preconditioned_momentum,
)
from .multi_scale_momentum import ScaleByM3State, m3, scale_by_m3
from .orthogonalization import newton_schulz, orthogonalize
from .timescales import EveryState, every, label_by_path, multi_timescale

__all__ = [
  'AssociativeMomentumState',
  'DeepMomentumState',
  'EveryState',
  'GradientDescentState',
  'MatrixAxes',
  'MomentumState',
  'ScaleByM3State',
  'SplitAxes',
  'associative_momentum',
  'check',
  'deep_momentum',
  'delta_gradient_descent',
  'delta_momentum',
  'every',
  'feature_momentum',
  'generalized_gradient_descent',
  'label_by_path',
  'm3',
  'matrix_axes',
  'multi_timescale',
  'newton_schulz',
  'on_matrices',
  'orthogonalize',
  'preconditioned_momentum',
  'scale_by_associative_momentum',
  'scale_by_deep_momentum',
  'scale_by_delta_momentum',
  'scale_by_feature_momentum',
  'scale_by_m3',
  'scale_by_preconditioned_momentum',
  'second_moments',
  'stacked_matrix_axes',
]
