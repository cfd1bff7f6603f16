"""The optimizers of Nested Learning (arXiv:2512.24695) for optax."""

from .arguments import check as check
from .associative_momentum import (
  AssociativeMomentumState as AssociativeMomentumState,
)
from .associative_momentum import associative_momentum as associative_momentum
from .associative_momentum import (
  scale_by_associative_momentum as scale_by_associative_momentum,
)
from .deep_momentum import DeepMomentumState as DeepMomentumState
from .deep_momentum import deep_momentum as deep_momentum
from .deep_momentum import scale_by_deep_momentum as scale_by_deep_momentum
from .gradient_descent import GradientDescentState as GradientDescentState
from .gradient_descent import delta_gradient_descent as delta_gradient_descent
from .gradient_descent import (
  generalized_gradient_descent as generalized_gradient_descent,
)
from .gradient_descent import second_moments as second_moments
from .matrices import MatrixAxes as MatrixAxes
from .matrices import SplitAxes as SplitAxes
from .matrices import matrix_axes as matrix_axes
from .matrices import on_matrices as on_matrices
from .matrices import stacked_matrix_axes as stacked_matrix_axes
from .momentum import MomentumState as MomentumState
from .momentum import delta_momentum as delta_momentum
from .momentum import feature_momentum as feature_momentum
from .momentum import preconditioned_momentum as preconditioned_momentum
from .momentum import scale_by_delta_momentum as scale_by_delta_momentum
from .momentum import scale_by_feature_momentum as scale_by_feature_momentum
from .momentum import (
  scale_by_preconditioned_momentum as scale_by_preconditioned_momentum,
)
from .multi_scale_momentum import ScaleByM3State as ScaleByM3State
from .multi_scale_momentum import m3 as m3
from .multi_scale_momentum import scale_by_m3 as scale_by_m3
from .orthogonalization import newton_schulz as newton_schulz
from .orthogonalization import orthogonalize as orthogonalize
from .timescales import EveryState as EveryState
from .timescales import every as every
from .timescales import label_by_path as label_by_path
from .timescales import multi_timescale as multi_timescale
