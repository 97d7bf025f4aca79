"""The integers a kernel runs by: one int64 array, its fields in this order.

Sizes: N samples of C channels in G groups, D = C / G channels a group, S positions a channel. Work: UNITS blocks
(channels first: one group of one sample; channels last: one sample), each summed in SUMS steps over PARTS parts of PART
elements (channels last: positions) and written in PIECES pieces of at most RUN elements (positions); with one position
the backward pass has units of PART samples, summed and written in the same PIECES. FIRST and LAST
bound the phases, SLOTS the tasks that run at once; a task owns SLOT values of scratch, tables of PITCH. Where PAST is
not 0, long runs of y or dx are stored past the caches. Channels last the loops take several positions together where
channels are fewer than FEW_CHANNELS, as a row of ROW values; DENSE is not 0 where no array has gaps between positions.
Strides count elements: `_N` from sample to sample, `_R` (channels last) from position to position, `_C` from channel to
channel of a parameter (0: the same value for all).
"""

FIELDS = (
    "N", "C", "G", "D", "S",
    "UNITS", "PART", "PARTS", "SUMS", "RUN", "PIECES", "FIRST", "LAST", "SLOTS", "SLOT", "PITCH",
    "PAST", "DENSE", "ROW",
    "X_N", "X_R", "SKIP_N", "SKIP_R", "RES_N", "RES_R", "Y_N", "Y_R", "DY_N", "DY_R", "DRES_N", "DRES_R",
    "W_N", "W_C", "B_N", "B_C",
)  # fmt: skip

(
    N, C, G, D, S,
    UNITS, PART, PARTS, SUMS, RUN, PIECES, FIRST, LAST, SLOTS, SLOT, PITCH,
    PAST, DENSE, ROW,
    X_N, X_R, SKIP_N, SKIP_R, RES_N, RES_R, Y_N, Y_R, DY_N, DY_R, DRES_N, DRES_R,
    W_N, W_C, B_N, B_C,
) = range(len(FIELDS))  # fmt: skip

# The memory layouts that have loops of their own; the third is a case of the first in the backward pass: one position,
# and parameters that all samples share.
CHANNELS_FIRST, CHANNELS_LAST, SINGLE_POSITION = 0, 1, 2

# Channels last, fewer than these must lie without gaps from position to position.
FEW_CHANNELS = 64

# The phases: a whole block at once, or every block's parts, then every block's statistics, then every block's pieces.
WHOLE, SUM, SETTLE, WRITE = range(4)
