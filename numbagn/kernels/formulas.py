"""The formulas of group normalization and of its activations, on one lane.

Functions of values that know +, -, *, / and of the primitives of `vectors`; compiled here for CPU vectors, and another
target can compile each one's `py_func` for its own kind of value. No loops, no memory, no layout.

`x_hat = (x - mean) * rstd` is never computed from ``x * rstd - mean * rstd``: at a mean of 1e4 that loses four digits.
Instead x is first shifted by a number K near its mean, representable in the accumulator's type, so that the difference
is exact or nearly so, and what K lacks is added in `lack = (K - mean) * rstd`. Differences are taken in a unit, of 1/2
as a rule, so that they cannot overflow while the result is finite.
"""

from .callees import inlined
from .cpu.vectors import constant, fma, polynomial, times_power_of_two, where

HALF_SQRT_2 = 0.7071067811865476
INV_SQRT_2_PI = 0.3989422804014327
# gelu_tanh is x * sigmoid(u) with u = 2 * sqrt(2 / pi) * (x + 0.044715 * x**3)
TANH_LINEAR = 1.5957691216057308
TANH_CUBIC = 0.0713548162726009
# Beyond it every activation is 0 or x; clamped there, infinities cannot meet a 0 and make NaN.
EDGE = 2000.0


@inlined
def sum_and_loss(a, b):
    """a + b rounded, and what the rounding lost, exactly (Knuth's two-sum)."""
    total = a + b
    added = total - a
    return total, (a - (total - added)) + (b - added)


@inlined
def sum_difference(a, b, unit, origin):
    """(a + b - K) * unit as if only the result were rounded, with origin = -K * unit; unit is a power of two."""
    total, lost = sum_and_loss(a * unit, b * unit)
    return (total + origin) + lost


@inlined
def exp(z):
    """e**z, at most 1.5 ulp; 0 where that is no normal number any more, infinity where it is too large."""
    # the nearest whole number n to z / ln(2), in the last bits of a number so large that it has no fraction
    rounder = constant(z, "rounder")
    shifted = fma(z, 1.4426950408889634, rounder)
    n = shifted - rounder
    r = fma(n, -constant(z, "ln2 low"), fma(n, -constant(z, "ln2 high"), z))
    e = times_power_of_two(fma(fma(polynomial(r, "exp"), r, 1.0), r, 1.0), shifted)
    return where(z <= constant(z, "exp highest"), where(z < constant(z, "exp lowest"), 0.0, e), z * constant(z, "huge"))


@inlined
def half_erfc(x, density):
    """erfc(|x|) / 2, accurate relative to its size however small; density = exp(-x**2)."""
    x = where(x < 0.0, -x, x)
    k = constant(x, "erfc centre")
    q = 1.0 / (x + k)
    return density * polynomial(fma(q, -2.0 * k, 1.0), "erfc") * q * 0.5


@inlined
def gauss(z):
    """exp(-z**2 / 2); the rounding error of z**2, which the exponential would magnify, is taken out afterwards."""
    square = z * z
    lost = fma(z, z, -square)
    e = exp(square * -0.5)
    return fma(e, lost * -0.5, e)


@inlined
def normal_cdf(z, density):
    """The normal distribution function; density = exp(-z**2 / 2)."""
    tail = half_erfc(z * HALF_SQRT_2, density)
    return where(z < 0.0, tail, 1.0 - tail)


@inlined
def clamp(z):
    return where(z < -EDGE, -EDGE, where(z > EDGE, EDGE, z))


@inlined
def clamp_below(z):
    return where(z < -EDGE, -EDGE, z)


@inlined
def sigmoid_product_slope(z, u, du):
    """The derivative of z * sigmoid(u) by z, with du that of u; s * (1 - s) is made without a difference near 0."""
    e = exp(where(u < 0.0, u, -u))
    q = 1.0 / (1.0 + e)
    return fma(z * du, e * q * q, where(u < 0.0, e * q, q))


@inlined
def relu(z):
    return where(z < 0.0, 0.0, z)


@inlined
def relu_slope(z):
    return where(z <= 0.0, 0.0, 1.0)


@inlined
def silu(z):
    z = clamp_below(z)
    return z / (1.0 + exp(-z))


@inlined
def silu_slope(z):
    z = clamp(z)
    return sigmoid_product_slope(z, z, 1.0)


@inlined
def gelu(z):
    c = clamp(z)
    return clamp_below(z) * normal_cdf(c, gauss(c))


@inlined
def gelu_slope(z):
    z = clamp(z)
    density = gauss(z)
    return fma(z * INV_SQRT_2_PI, density, normal_cdf(z, density))


@inlined
def gelu_tanh(z):
    z = clamp_below(z)
    return z / (1.0 + exp(-z * fma(z * z, TANH_CUBIC, TANH_LINEAR)))


@inlined
def gelu_tanh_slope(z):
    z = clamp(z)
    square = z * z
    u = z * fma(square, TANH_CUBIC, TANH_LINEAR)
    return sigmoid_product_slope(z, u, fma(square, 3.0 * TANH_CUBIC, TANH_LINEAR))


# name: (the function, its derivative); code 0, no activation, has no row.
ACTIVATIONS = {
    "relu": (relu, relu_slope),
    "silu": (silu, silu_slope),
    "gelu": (gelu, gelu_slope),
    "gelu_tanh": (gelu_tanh, gelu_tanh_slope),
}
