"""What the layers see and what the output feels: streaming uncentred second moments C = E[x x'] of layer inputs, and
Gamma = E[g g'] of what a change of the layer's output does to the model's output.

With g = J'e, where J is the derivative of the model's output by the layer's and e is unit noise, Gamma = E[J'J]: a change dW
of a layer moves the model's output by tr(Gamma dW C dW') per token, to second order, inputs and gradients taken as independent
(K-FAC; Martens and Grosse 2015, "Optimizing neural networks with Kronecker-factored approximate curvature").

Layers that read the same tensor (q, k and v; every cross-attention's k and v) share one moment. Up to EXACT_WIDTH a moment is
exact; above, it is a Nystrom sketch C @ Omega with a fixed random Omega (Tropp et al. 2017, "Fixed-rank approximation of a
positive-semidefinite matrix from streaming data") and the exact diagonal. Both are linear in C, so moments add up as they are.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import SeqLoRAError
from ..lora.targets import layer_shapes

EXACT_WIDTH = 320
SKETCH_RANK = 64
LARGEST_PART = 1 << 24  # values of rows that are taken up at a time


def test_matrix(width: int) -> Tensor | None:
    """Omega (n, k) of the sketch, the same for every moment of this width; None where the moment is exact."""
    if width <= EXACT_WIDTH:
        return None
    return torch.randn(width, SKETCH_RANK, generator=torch.Generator().manual_seed(width))


def factored_times(factor: Tensor, diagonal: Tensor, columns: Tensor) -> Tensor:
    """C X for C = VV' + diag(d): V (..., n, k), d (..., n), X (..., n, r)."""
    return factor @ (factor.mT @ columns) + diagonal[..., None] * columns


@dataclass
class Moment:
    sketch: Tensor  # (n, n): C itself, or (n, k): C @ Omega
    diagonal: Tensor  # (n,): diag C
    _factor: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False, compare=False)

    def __add__(self, other: Moment) -> Moment:
        return Moment(self.sketch + other.sketch, self.diagonal + other.diagonal)

    def __mul__(self, factor: float) -> Moment:
        return Moment(self.sketch * factor, self.diagonal * factor)

    @property
    def width(self) -> int:
        return len(self.diagonal)

    @property
    def exact(self) -> bool:
        return self.sketch.shape[0] == self.sketch.shape[1]

    def factor(self) -> tuple[Tensor, Tensor]:
        """V (n, k) and d (n,), in float64, with C = VV' + diag(d); exact moments have d = 0. Computed once."""
        if self._factor is None:
            self._factor = self._factorised()
        return self._factor

    def forget(self) -> None:
        """Makes room of what was computed."""
        self._factor = None

    def times(self, columns: Tensor) -> Tensor:
        """C X for X (n, r) or a batch of them, in the precision of X. Of an exact moment without its factor, which would take
        longer than all the rest."""
        if self.exact:
            return self.sketch.to(columns) @ columns
        factor, diagonal = (part.to(columns) for part in self.factor())
        return factored_times(factor, diagonal, columns)

    def energy(self, columns: Tensor) -> Tensor:
        """X'CX in float64, (r, r) or a batch of them: how much of what C describes lies along the columns of X (n, r)."""
        columns = columns.double()
        return columns.mT @ self.times(columns)

    def _factorised(self) -> tuple[Tensor, Tensor]:
        sketch = self.sketch.double()
        if self.exact:
            values, vectors = torch.linalg.eigh((sketch + sketch.mT) / 2)
            return vectors * values.clamp(min=0).sqrt(), torch.zeros_like(values)
        omega = test_matrix(self.width)
        assert omega is not None  # only exact moments have none
        omega = omega.to(sketch)
        shift = 1e-10 * torch.linalg.matrix_norm(sketch)
        shifted = sketch + shift * omega
        core = omega.mT @ shifted
        lower, failed = torch.linalg.cholesky_ex((core + core.mT) / 2)
        if failed:  # C has a lower rank than the sketch; what lies below the rounding of its fp32 sums is left out
            values, vectors = torch.linalg.eigh((core + core.mT) / 2)
            half = shifted @ (vectors * torch.where(values > 1e-6 * values.max(), values, math.inf).rsqrt())
        else:
            half = torch.linalg.solve_triangular(lower.mT, shifted, upper=True, left=False)
        left, singular, _ = torch.linalg.svd(half, full_matrices=False)
        factor = left * (singular**2 - shift).clamp(min=0).sqrt()
        return factor, (self.diagonal.double() - factor.square().sum(1)).clamp(min=0)


@dataclass
class Moments:
    """Moments of all chosen layers on one kind of input."""

    by_input: dict[str, Moment] = field(default_factory=dict)  # named after the first layer that reads the input
    input_of: dict[str, str] = field(default_factory=dict)  # layer -> the input it reads
    output_energy: dict[str, float] = field(default_factory=dict)  # layer -> E|Wx|^2 = tr(W C W'), without bias
    output_curvature: dict[str, Moment] = field(default_factory=dict)  # layer -> Gamma (m, m); the base model's own only

    def __getitem__(self, layer: str) -> Moment:
        return self.by_input[self.input_of[layer]]

    def __add__(self, other: Moments) -> Moments:
        total = {name: self.by_input[name] + moment for name, moment in other.by_input.items()}
        energy = {name: self.output_energy[name] + value for name, value in other.output_energy.items()}
        return Moments(total, self.input_of, energy, self.output_curvature)

    def __mul__(self, factor: float) -> Moments:
        energy = {name: value * factor for name, value in self.output_energy.items()}
        by_input = {name: moment * factor for name, moment in self.by_input.items()}
        return Moments(by_input, self.input_of, energy, self.output_curvature)

    def sensitivity(self, layer: str) -> float:
        """How far the model's output moves, per token, when this layer's output is replaced by noise of its own size."""
        gamma = self.output_curvature[layer]
        return float(gamma.diagonal.double().mean()) * self.output_energy[layer]


def _in_parts(rows: Tensor) -> Iterator[Tensor]:
    """The rows in fp32, some at a time: a copy of all would outweigh what a training keeps for its backward."""
    return (part.float() for part in rows.split(max(1, LARGEST_PART // rows.shape[1])))


class _Averages:
    """Sums of rows' moments by name."""

    def __init__(self) -> None:
        self._sums: dict[str, Moment] = {}
        self.rows: dict[str, int] = {}
        self._omega: dict[tuple[int, torch.device], Tensor | None] = {}

    def add(self, name: str, rows: Tensor) -> None:
        width = rows.shape[1]
        place = (width, rows.device)
        if place not in self._omega:
            omega = test_matrix(width)
            self._omega[place] = None if omega is None else omega.to(rows.device)
        omega = self._omega[place]
        for part in _in_parts(rows):
            sketch = part.mT @ (part if omega is None else part @ omega)
            moment = Moment(sketch, part.square().sum(0))
            self._sums[name] = self._sums[name] + moment if name in self._sums else moment
        self.rows[name] = self.rows.get(name, 0) + len(rows)

    def moments(self) -> dict[str, Moment]:
        """On the CPU in fp32. Raises SeqLoRAError naming a layer whose rows are no numbers."""
        averages = {}
        for name, total in self._sums.items():
            if not self.rows[name]:
                continue
            if not total.diagonal.isfinite().all():
                raise SeqLoRAError(f"Layer {name} sees values that are not numbers", "load the model in bfloat16 or float32")
            average = total * (1 / self.rows[name])
            averages[name] = Moment(average.sketch.cpu(), average.diagonal.cpu())
        return averages


class Recorder:
    """Adds up moments while forwards run, while `recording_gradients` is set backwards too; `moments()` gives averages."""

    def __init__(self, layers: Mapping[str, nn.Module]):
        self.layers = layers
        self.input_of: dict[str, str] = {}
        self.recording_gradients = False
        self._seen, self._felt = _Averages(), _Averages()
        self._energy: dict[str, Tensor] = {}
        self._live: dict[int, tuple[weakref.ref, int, str]] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        handles = [module.register_forward_hook(self._hook(name)) for name, module in self.layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._live.clear()

    def _hook(self, name: str) -> Callable[..., Tensor | None]:
        def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if self.recording_gradients:
                return self._probe_output(name, output)
            with torch.no_grad():
                self._see(name, module, args[0], output)
            return None

        return record

    def _see(self, name: str, module: nn.Module, x: Tensor, output: Tensor) -> None:
        if self._input_name(name, x) == name:
            self._seen.add(name, x.detach().flatten(0, -2))
        bias = getattr(module, "bias", None)
        for base in _in_parts(output.detach().flatten(0, -2)):
            energy = (base if bias is None else base - bias.detach().to(base)).square().sum()
            self._energy[name] = self._energy[name] + energy if name in self._energy else energy

    def _probe_output(self, name: str, output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():  # the first of two runs under gradient checkpointing
            return output
        watched = output + output.new_zeros(()).requires_grad_()  # no weight of a frozen model asks for a gradient
        watched.register_hook(lambda g: self._felt.add(name, g.flatten(0, -2)))
        return watched

    def _input_name(self, name: str, x: Tensor) -> str:
        if name not in self.input_of:
            # A stream that blocks write into is one tensor with another content each time: its version tells.
            version = 0 if x.is_inference() else x._version
            seen = self._live.get(id(x))
            if seen is not None and seen[0]() is x and seen[1] == version:
                self.input_of[name] = seen[2]
            else:
                self.input_of[name] = name
                self._live[id(x)] = (weakref.ref(x), version, name)
        return self.input_of[name]

    def moments(self) -> Moments:
        """Averages over all rows seen and felt. Raises SeqLoRAError naming a layer that saw what is no number.

        A layer that did not run, or of which the output felt nothing, such as an expert that no token was sent to, has zeros.
        """
        seen, felt = self._seen.moments(), self._felt.moments()
        shapes = layer_shapes(self.layers)
        input_of = {name: name for name in shapes} | self.input_of
        seen |= {name: _nothing(shapes[name][1]) for name in input_of.values() if name not in seen}
        if felt:
            felt |= {name: _nothing(m) for name, (m, _) in shapes.items() if name not in felt}
        rows = {name: max(1, self._seen.rows.get(key, 0)) for name, key in input_of.items()}
        energy = {name: float(self._energy.get(name, 0.0)) / rows[name] for name in input_of}
        return Moments(seen, input_of, energy, felt)


def _nothing(width: int) -> Moment:
    omega = test_matrix(width)
    return Moment(torch.zeros(width, width if omega is None else omega.shape[1]), torch.zeros(width))
