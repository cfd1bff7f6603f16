"""Float64 NumPy transcriptions of the equations that the tests hold us to.

Everything is written from the mathematics, with plain loops, and shares
nothing with `hope`: no jax, no parallel form, no batching tricks. Equation
numbers are those of arXiv:2512.24695 unless another paper is named.

Functions that only add, multiply and use analytic functions also accept
complex arrays, so that `complex_step` can differentiate them to rounding error.
"""

from collections.abc import Callable, Mapping

import numpy as np

Array = np.ndarray
Function = Callable[[Array], Array]

# ------------------------------------------------------------- derivatives


def complex_step(function: Callable[[Array], complex], x: Array) -> Array:
  """Gradient of a scalar analytic function, without subtractive error.

  f(x + i h) = f(x) + i h f'(x) + O(h^2), so Im f(x + i h) / h is exact in
  float64 for a small enough h.

  Args:
    function: Analytic map from an array shaped as `x` to a scalar.
    x: Real array of any shape.

  Returns:
    The gradient, shaped as `x`.
  """
  h = 1e-30
  gradient = np.zeros(x.shape)
  for index in np.ndindex(x.shape):
    moved = x.astype(complex)
    moved[index] += 1j * h
    gradient[index] = np.imag(function(moved)) / h
  return gradient


# -------------------------------------------------------------- activations


def gelu(x: Array) -> Array:
  """GELU in its tanh approximation."""
  inner = np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)
  return 0.5 * x * (1.0 + np.tanh(inner))


def gelu_derivative(x: Array) -> Array:
  """Derivative of `gelu`."""
  inner = np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)
  slope = np.sqrt(2.0 / np.pi) * (1.0 + 3.0 * 0.044715 * x**2)
  tanh = np.tanh(inner)
  return 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh**2) * slope


def silu(x: Array) -> Array:
  """x times the logistic function of x."""
  return x / (1.0 + np.exp(-x))


def silu_derivative(x: Array) -> Array:
  """Derivative of `silu`."""
  s = 1.0 / (1.0 + np.exp(-x))
  return s + x * s * (1.0 - s)


ACTIVATIONS = {
  'gelu': (gelu, gelu_derivative),
  'silu': (silu, silu_derivative),
}

# --------------------------------------------------------------- objectives


def loss(name: str, prediction: Array, target: Array) -> complex:
  """Inner loss of one token: 'l2' is 1/2 |p - v|^2, 'dot' is -<p, v>."""
  if name == 'l2':
    return 0.5 * np.sum((prediction - target) ** 2)
  if name == 'dot':
    return -np.sum(prediction * target)
  raise ValueError(name)


def error(name: str, prediction: Array, target: Array) -> Array:
  """Gradient of `loss` with respect to the prediction."""
  if name == 'l2':
    return prediction - target
  if name == 'dot':
    return -target
  raise ValueError(name)


# ---------------------------------------------------------- the update rule


def normalized_step(eta: float, u: Array) -> float:
  """eta' = eta / (1 + eta |u|^2) for one input u [i]."""
  return eta / (1.0 + eta * np.sum(u * u))


def proximal_step(kernel: Array, u: Array, g: Array, eta: float) -> Array:
  """argmin_K 1/2 |u K + g|^2 + 1/(2 eta) |K - K_t|^2 (Eq. 56), numerically.

  As least squares: the rows of K that fit u K = -g and, with weight
  1 / sqrt(eta), I K = K_t.

  Args:
    kernel: K_t [i, o].
    u: Input [i].
    g: Output error [o].
    eta: Step size of the proximal problem, before normalisation.

  Returns:
    The minimiser [i, o].
  """
  weight = 1.0 / np.sqrt(eta)
  matrix = np.concatenate([u[None, :], weight * np.eye(len(u))])
  target = np.concatenate([-g[None, :], weight * kernel])
  return np.linalg.lstsq(matrix, target, rcond=None)[0]


def sequence_update(
  kernel: Array,
  trace: Array | None,
  u: Array,
  g: Array,
  *,
  eta: Array,
  alpha: Array,
  beta: Array | None,
  erase: Array | float | None = None,
  queries: Array | None = None,
  read_after: bool = False,
  trace_erases: bool = False,
) -> tuple[Array, Array | None, Array | None]:
  """Rule (A) over the tokens of one sequence (Eq. 57 and 88, with momentum).

      S_t = beta_t S_{t-1} - eta_t u_t^T g_t
      K_t = (alpha_t I - erase_t u_t^T u_t) K_{t-1} + S_t

  Args:
    kernel: K_0 [i, o].
    trace: S_0 [i, o], or None for no momentum.
    u: Inputs [c, i].
    g: Output errors [c, o].
    eta: Learning rates [c], already normalised.
    alpha: Retention [c].
    beta: Momentum factors [c], or None for no momentum.
    erase: Erase rates [c]; None for `eta`; 0.0 for no erase.
    queries: Queries [c, i], or None.
    read_after: Whether a token reads K_t in the place of K_{t-1}.
    trace_erases: Whether what is erased goes through the trace,

      S_t = beta_t S_{t-1} - u_t^T (eta_t g_t + erase_t u_t K_{t-1})
      K_t = alpha_t K_{t-1} + S_t

  Returns:
    K_C, S_C (None without momentum) and the reads q_t K_{t-1} or q_t K_t
    [c, o] (None without queries).
  """
  tokens, width = u.shape
  if erase is None:
    erase = eta
  erase = np.broadcast_to(erase, (tokens,))
  reads = []
  for t in range(tokens):
    if queries is not None and not read_after:
      reads.append(queries[t] @ kernel)
    write = -eta[t] * np.outer(u[t], g[t])
    transition = alpha[t] * np.eye(width)
    if trace_erases:
      write = write - erase[t] * np.outer(u[t], u[t] @ kernel)
    else:
      transition = transition - erase[t] * np.outer(u[t], u[t])
    if trace is None:
      step = write
    else:
      trace = beta[t] * trace + write
      step = trace
    kernel = transition @ kernel + step
    if queries is not None and read_after:
      reads.append(queries[t] @ kernel)
  return kernel, trace, None if queries is None else np.stack(reads)


def batched_update(
  kernel: Array,
  trace: Array | None,
  u: Array,
  g: Array,
  *,
  eta: Array,
  alpha: Array,
  beta: Array | None,
  erase: Array | float | None = None,
  queries: Array | None = None,
  read_after: bool = False,
  trace_erases: bool = False,
) -> tuple[Array, Array | None, Array | None]:
  """`sequence_update` for each index of the leading dimensions."""
  lead = kernel.shape[:-2]

  def at(x, index):
    return x[index] if isinstance(x, np.ndarray) else x

  results = [
    sequence_update(
      kernel[index],
      at(trace, index),
      u[index],
      g[index],
      eta=eta[index],
      alpha=alpha[index],
      beta=at(beta, index),
      erase=at(erase, index),
      queries=at(queries, index),
      read_after=read_after,
      trace_erases=trace_erases,
    )
    for index in np.ndindex(lead)
  ]
  stacked = []
  for parts in zip(*results, strict=True):
    if parts[0] is None:
      stacked.append(None)
    else:
      stacked.append(np.stack(parts).reshape(lead + parts[0].shape))
  return tuple(stacked)


# ------------------------------------------------- published special cases
# In the notation of their papers: vectors are columns, a state W, S or M is
# [o, i] (so that our kernel is its transpose), keys are [t, i], values [t, o].
# All return the states before the first and after every token: [t + 1, o, i].


def ttt_linear(
  w: Array, k: Array, v: Array, eta: Array, *, batch: int = 1
) -> Array:
  """TTT-Linear (arXiv:2407.04620): W_t = W_{t-1} - eta_t grad l(W_t'; x_t).

  l(W) = 1/2 |W k - v|^2, and t' is the last token before the mini-batch that
  token t is in (for `batch=1`, t - 1).
  """
  states = [w]
  for t in range(len(k)):
    at = states[t - t % batch]
    gradient = np.outer(at @ k[t] - v[t], k[t])
    states.append(states[-1] - eta[t] * gradient)
  return np.stack(states)


def titans_lmm(
  m: Array,
  s: Array,
  k: Array,
  v: Array,
  *,
  momentum: Array,
  rate: Array,
  forget: Array,
) -> tuple[Array, Array]:
  """Titans' long-term memory (arXiv:2501.00663, Eq. 12-14), linear.

      l(M) = |M k - v|^2
      S_t = eta_t S_{t-1} - theta_t grad l(M_{t-1}; x_t)
      M_t = (1 - alpha_t) M_{t-1} + S_t

  Args:
    m: M_0 [o, i].
    s: S_0 [o, i], the surprise.
    k: Keys [t, i].
    v: Values [t, o].
    momentum: The paper's eta [t].
    rate: The paper's theta [t]; its loss has no 1/2, so ours is twice this.
    forget: The paper's alpha [t]; our retention is one minus this.

  Returns:
    The states M [t + 1, o, i] and the last surprise.
  """
  states = [m]
  for t in range(len(k)):
    gradient = 2.0 * np.outer(states[-1] @ k[t] - v[t], k[t])
    s = momentum[t] * s - rate[t] * gradient
    states.append((1.0 - forget[t]) * states[-1] + s)
  return np.stack(states), s


def delta_net(s: Array, k: Array, v: Array, beta: Array) -> Array:
  """DeltaNet: S_t = S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T."""
  states = [s]
  for t in range(len(k)):
    forget = np.eye(k.shape[1]) - beta[t] * np.outer(k[t], k[t])
    states.append(states[-1] @ forget + beta[t] * np.outer(v[t], k[t]))
  return np.stack(states)


def gated_delta_net(
  s: Array, k: Array, v: Array, alpha: Array, beta: Array
) -> Array:
  """Gated DeltaNet (arXiv:2412.06464).

  S_t = S_{t-1} (alpha_t (I - beta_t k_t k_t^T)) + beta_t v_t k_t^T.
  """
  states = [s]
  for t in range(len(k)):
    forget = np.eye(k.shape[1]) - beta[t] * np.outer(k[t], k[t])
    states.append(
      states[-1] @ (alpha[t] * forget) + beta[t] * np.outer(v[t], k[t])
    )
  return np.stack(states)


def comba(
  s: Array, k: Array, v: Array, alpha: Array, beta: Array, feedback: float
) -> Array:
  """Comba (arXiv:2506.02475).

  S_t = S_{t-1} (alpha_t I - b beta_t k_t k_t^T) + beta_t v_t k_t^T.
  """
  states = [s]
  for t in range(len(k)):
    kept = alpha[t] * np.eye(k.shape[1])
    kept -= feedback * beta[t] * np.outer(k[t], k[t])
    states.append(states[-1] @ kept + beta[t] * np.outer(v[t], k[t]))
  return np.stack(states)


def linear_attention(s: Array, k: Array, v: Array) -> Array:
  """Linear attention, unnormalised: S_t = S_{t-1} + v_t k_t^T."""
  states = [s]
  for t in range(len(k)):
    states.append(states[-1] + np.outer(v[t], k[t]))
  return np.stack(states)


def retention(s: Array, k: Array, v: Array, gamma: float) -> Array:
  """RetNet (arXiv:2307.08621): S_t = gamma S_{t-1} + v_t k_t^T."""
  states = [s]
  for t in range(len(k)):
    states.append(gamma * states[-1] + np.outer(v[t], k[t]))
  return np.stack(states)


def rwkv7(
  s: Array, w: Array, removed: Array, a: Array, k: Array, v: Array
) -> Array:
  """RWKV-7 (arXiv:2503.14456), whose vectors are rows.

  S_t = S_{t-1} (diag(w_t) - khat_t^T (a_t * khat_t)) + v_t^T k_t, where
  `removed` is khat.
  """
  states = [s]
  for t in range(len(k)):
    kept = np.diag(w[t]) - np.outer(removed[t], a[t] * removed[t])
    states.append(states[-1] @ kept + np.outer(v[t], k[t]))
  return np.stack(states)


# ------------------------------------------------------- two-layer memories


def memory(
  z: Array, up: Array, down: Array, activation: Function, residual: bool
) -> Array:
  """M(z) = z + act(z @ up) @ down (Eq. 89); without z if not `residual`.

  Args:
    z: Input [d].
    up: First kernel [d, f].
    down: Second kernel [f, o]; o = d if `residual`.
    activation: The function act.
    residual: Whether the input is added.

  Returns:
    The output [o].
  """
  output = activation(z @ up) @ down
  return z + output if residual else output


def bound_norm(x: Array, bound: float, epsilon: float = 0.0) -> Array:
  """x, scaled down to the norm `bound` where it is longer."""
  return x * min(1.0, bound / np.sqrt(np.sum(x * x) + epsilon))


def memory_errors(
  k: Array,
  target: Array,
  up: Array,
  down: Array,
  activation: tuple[Function, Function],
  residual: bool,
  objective: str,
  error_max: float | None = None,
  epsilon: float = 0.0,
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
  """Inputs and output errors of both layers at key k, by the chain rule.

  Args:
    k: Key [d].
    target: Wanted output [o], a given value.
    up: First kernel [d, f].
    down: Second kernel [f, o].
    activation: The function act and its derivative.
    residual: As in `memory`.
    objective: 'l2' or 'dot'.
    error_max: Largest norm of the error of the output and of the hidden layer
      (before the activation's derivative), or None for no bound.
    epsilon: Added to the squares of these norms.

  Returns:
    (u, g) of `up` and (u, g) of `down`; the gradient of a layer's kernel is
    outer(u, g).
  """
  act, act_derivative = activation
  z = k @ up
  h = act(z)
  g_down = error(objective, memory(k, up, down, act, residual), target)
  if error_max is not None:
    g_down = bound_norm(g_down, error_max, epsilon)
  back = g_down @ down.T
  if error_max is not None:
    back = bound_norm(back, error_max, epsilon)
  g_up = back * act_derivative(z)
  return (k, g_up), (h, g_down)


# -------------------------------------------------- self-referential Titans


def l2_normalize(x: Array, epsilon: float = 0.0) -> Array:
  """x / sqrt(|x|^2 + epsilon)."""
  return x / np.sqrt(np.sum(x * x) + epsilon)


def self_referential_titans(
  memories: Mapping[str, tuple[Array, Array]],
  x_k: Array,
  x_v: Array,
  x_q: Array,
  *,
  activation: tuple[Function, Function],
  gate_eta: Callable[[float], float],
  gate_alpha: Callable[[float], float],
  rates: Mapping[str, tuple[Array, Array]],
  learning: Mapping[str, Mapping[str, object]],
  beta: Array | None = None,
  anchor: str = 'initial',
  erase: bool = True,
  read_after: bool = False,
  target_max: float | None = None,
  error_max: float | None = None,
  epsilon: float = 0.0,
) -> tuple[Array, dict[str, tuple[Array, Array]], dict[str, Array]]:
  """Self-referential Titans, token by token (Eq. 86-89; chunks of one).

  With every M taken at its state before token t:

      k = norm(M_k(x_k))            eta = gate_eta(M_eta(x_k))
      v = norm(M_v(x_v))            alpha = gate_alpha(M_alpha(x_k))
      q = norm(M_q(x_q)), or norm(x_q) without a memory 'q'
      y_t = M_memory(q)

  then every memory m learns to map k to its own target M_m(v), shortened to
  the norm target_max where it is longer: each of its layers, with input u,
  output error g and eta_l = rate_l eta (times 1 - beta_t with momentum, which
  sums a write 1 / (1 - beta) times), takes

      eta' = eta_l / (1 + eta_l |u|^2)
      S_t = beta_t S_{t-1} - eta' outer(u, g)
      D_t = (alpha I - eps outer(u, u)) D_{t-1} + S_t       eps = eta' or 0

  where D is the kernel itself (anchor 'zero', the letter of Eq. 88) or its
  deviation from the initial kernel (anchor 'initial'). Traces start at zero.
  By the delta rule (objective 'delta') the second layer, with input u and B its
  initial kernel (0 for anchor 'zero'), descends on what it would say after
  retention,

      g = residual(k) + u (B + alpha D_{t-1}) - target
      S_t = beta_t S_{t-1} - eta' outer(u, g),   D_t = alpha D_{t-1} + S_t

  Args:
    memories: Initial kernels by name: 'k', 'v', 'eta', 'alpha', 'memory' and
      optionally 'q'; each (up [n, d, f], down [n, f, o]). o is 1 for 'eta' and
      'alpha', which have no residual, and d for the others.
    x_k: Source of keys and of eta and alpha [b, t, n, d].
    x_v: Source of values [b, t, n, d].
    x_q: Source of queries [b, t, n, d].
    activation: The hidden activation and its derivative, as in ACTIVATIONS.
    gate_eta: From the raw output of 'eta' to the learning rate.
    gate_alpha: From the raw output of 'alpha' to the retention.
    rates: By name, factors (up [n], down [n]) of the learning rate of each
      layer, applied before its normalisation.
    learning: By name: 'objective', 'l2', 'dot' or 'delta'; 'share' [n] of the
      target M_m(v), the rest being the slow one: v for 'memory', and for others
      M_m(v) by the initial kernels; 'relative', whether eta' of the second
      layer is eta_l / max(|u|^2, 0.01); 'momentum', whether there is one.
    beta: Momentum factors [b, t, n]; None: no memory has momentum.
    anchor: 'zero' or 'initial'.
    erase: Whether the rule erases (delta gradient descent) or not.
    read_after: Whether y_t is M_memory(q) at the state after token t.
    target_max: Largest norm of a target M_m(v), or None for no bound.
    error_max: As in `memory_errors`.
    epsilon: Added to the squared norms of k, v, q and targets.

  Returns:
    y [b, t, n, d]; by name, the kernels after the last token,
    (up [b, n, d, f], down [b, n, f, o]); by name, inner losses [b, t, n] and,
    as 'k/change', |x - y| / |y| of what a memory makes (x) and what its initial
    kernels would make (y).
  """
  batch, tokens, heads, width = x_k.shape
  act = activation[0]
  y = np.zeros((batch, tokens, heads, width))
  final = {
    name: tuple(
      np.zeros((batch,) + initial.shape) for initial in memories[name]
    )
    for name in memories
  }
  losses = {name: np.zeros((batch, tokens, heads)) for name in memories}
  for name in set(memories) - {'memory'}:
    losses[f'{name}/change'] = np.zeros((batch, tokens, heads))

  for b in range(batch):
    for n in range(heads):
      # Per memory: [up, down] of one head and one sequence.
      base, state, trace = {}, {}, {}
      for name, kernels in memories.items():
        initial = [kernel[n] for kernel in kernels]
        zeros = [np.zeros(kernel.shape) for kernel in initial]
        if anchor == 'zero':
          base[name], state[name] = zeros, initial
        elif anchor == 'initial':
          base[name], state[name] = initial, zeros
        else:
          raise ValueError(anchor)
        trace[name] = [np.zeros(kernel.shape) for kernel in initial]

      for t in range(tokens):
        current = {
          name: [base[name][layer] + state[name][layer] for layer in (0, 1)]
          for name in memories
        }

        def call(name, z, current=current):
          residual = name not in ('eta', 'alpha')
          return memory(z, *current[name], act, residual)

        k = l2_normalize(call('k', x_k[b, t, n]), epsilon)
        v = l2_normalize(call('v', x_v[b, t, n]), epsilon)
        q = x_q[b, t, n]
        if 'q' in memories:
          q = call('q', q)
        q = l2_normalize(q, epsilon)
        eta = gate_eta(call('eta', x_k[b, t, n])[0])
        alpha = gate_alpha(call('alpha', x_k[b, t, n])[0])

        def begun(name, z, n=n):
          first = [kernel[n] for kernel in memories[name]]
          return memory(z, *first, act, name not in ('eta', 'alpha'))

        made = {
          'k': (k, l2_normalize(begun('k', x_k[b, t, n]), epsilon)),
          'v': (v, l2_normalize(begun('v', x_v[b, t, n]), epsilon)),
          'eta': (eta, gate_eta(begun('eta', x_k[b, t, n])[0])),
          'alpha': (alpha, gate_alpha(begun('alpha', x_k[b, t, n])[0])),
        }
        if 'q' in memories:
          made['q'] = q, l2_normalize(begun('q', x_q[b, t, n]), epsilon)
        for name, (now, first) in made.items():
          change = np.linalg.norm(now - first) / np.linalg.norm(first)
          losses[f'{name}/change'][b, t, n] = change

        if not read_after:
          y[b, t, n] = call('memory', q)

        for name in memories:
          residual = name not in ('eta', 'alpha')
          how = learning[name]
          own = call(name, v)
          if target_max is not None:
            own = bound_norm(own, target_max, epsilon)
          slow = v
          if name != 'memory':
            slow = begun(name, v)
          target = how['share'][n] * own + (1 - how['share'][n]) * slow
          delta = how['objective'] == 'delta'
          objective = 'l2' if delta else how['objective']
          losses[name][b, t, n] = loss(objective, call(name, k), target)
          layers = memory_errors(
            k,
            target,
            *current[name],
            activation,
            residual,
            objective,
            error_max,
            epsilon,
          )
          for layer, (u, g) in enumerate(layers):
            rate = eta * rates[name][layer][n]
            if how['momentum']:
              rate *= 1 - beta[b, t, n]
            online = delta and layer == 1
            if online:
              kept = base[name][1] + alpha * state[name][1]
              g = memory(k, current[name][0], kept, act, residual) - target
            step = normalized_step(rate, u)
            if how['relative'] and layer == 1:
              step = rate / max(np.sum(u * u), 1e-2)
            write = -step * np.outer(u, g)
            if how['momentum']:
              write = write + beta[b, t, n] * trace[name][layer]
            trace[name][layer] = write
            erased = step if erase and not online else 0.0
            transition = alpha * np.eye(len(u)) - erased * np.outer(u, u)
            state[name][layer] = transition @ state[name][layer] + write

        if read_after:
          kernels = [base['memory'][i] + state['memory'][i] for i in (0, 1)]
          y[b, t, n] = memory(q, *kernels, act, True)

      for name in memories:
        for layer in (0, 1):
          final[name][layer][b, n] = base[name][layer] + state[name][layer]
  return y, final, losses
