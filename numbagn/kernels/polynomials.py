"""Coefficients of the elementary functions, as pairs: for float32 lanes, for float64 lanes.

Each polynomial is the Chebyshev interpolant on its interval, computed with 60 digits and rewritten in powers of its
argument; the largest relative error of the approximation, before rounding, stands beside it.
`tests/test_activations.py` measures what the finished functions achieve.
"""

# Constants whose value depends on the precision.
CONSTANTS = {
    # exp: below the first, the result is no normal number; above the second, infinity.
    "exp lowest": (-87.33, -708.39),
    "exp highest": (88.722839, 709.78271289),
    # Times anything that exp is infinite for, it is infinity, and times NaN NaN.
    "huge": (3e38, 1e308),
    # A number whose last bit is 1: added to a smaller one, it rounds that to a whole number.
    "rounder": (1.5 * 2**23, 1.5 * 2**52),
    # ln 2 in two parts; the first has so few bits (14, 40) that its product with any exponent is exact.
    "ln2 high": (0.693115234375, 0.6931471805592082),
    "ln2 low": (3.1946184945309417e-05, 7.3710025651677990e-13),
    # erfc: the k of its argument (x - k) / (x + k).
    "erfc centre": (2.0, 4.0),
}


def _numbers(text):
    return tuple(map(float, text.split()))


POLYNOMIALS = {
    # (exp(r) - 1 - r) / r**2 for |r| <= ln(2) / 2: 1.0e-8 and 2.1e-19.
    "exp": (
        _numbers("""
            0.5 0.16666576845993976 0.041666554437685939 0.0083632029715758549 0.0013926213466332443
        """),
        _numbers("""
            0.5 0.16666666666666671 0.041666666666666677 0.0083333333333260826 0.0013888888888879002
            0.00019841269875003974 2.480158733663232e-5 2.7557255168123061e-6 2.7557263006075474e-7
            2.5105313423078523e-8 2.0918212752506956e-9
        """),
    ),
    # exp(x**2) * erfc(x) * (x + k) as a function of t = (x - k) / (x + k), 0 <= x <= 10.5 and 28: 5.8e-9 and 2e-18.
    "erfc": (
        _numbers("""
            1.021582708926472 -0.68716071787012616 0.27947175777838937 -0.036441289704962419 -0.021505507535447358
            0.0064727092058294214 0.0030609840227125848 -0.00082446280951502385 -0.00058773715528623886
            4.0808771083378337e-5 6.4845870106337807e-5
        """),
        _numbers("""
            1.0959956610004911 -0.97654872908088199 0.77320870226523737 -0.54085383131323634 0.33085158787799068
            -0.17401093723988209 0.076381514909938907 -0.026370053341259664 0.0061120556463699885
            -0.0002809588569286355 -0.00045505260482814766 0.00017681277541732302 -3.6355875676138494e-6
            -1.8860772632588197e-5 4.6958278803454235e-6 1.4240933522949078e-6 -8.4932817450573647e-7
            -7.5790687979049633e-8 1.2853062635289654e-7 1.7526503834972688e-9 -1.8980878245321469e-8
            -9.0807045524829646e-10 2.2267649166243727e-9 4.6601090962021864e-10
        """),
    ),
}
