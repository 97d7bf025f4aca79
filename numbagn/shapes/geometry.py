"""The integers a kernel runs by: one int64 array, its fields in this order.

Sizes: N samples of C channels in G groups, D = C / G channels a group, S positions a channel. Work: UNITS blocks
(channels first: one group of one sample; channels last: one sample), each summed in SUMS steps over PARTS parts of PART
elements (channels last: positions) and written in PIECES pieces of at most RUN elements (positions); with one position
the backward pass has units of PART samples, summed and written in the same PIECES. FIRST and LAST bound the phases,
SLOTS the tasks that run at once; a task owns SLOT values of scratch, tables of PITCH. Where KEEP_M2
is not 0, settling leaves M2, the sum of squared deviations, in rstd's place; where PAST is not 0, long runs of y or dx
are stored past the caches. Channels last the loops take several positions together where channels are fewer than
FEW_CHANNELS, as a row of ROW values. DENSE is not 0 where no array has gaps between rows, and no mask begins anew.

A row is what lies together: channels first the positions of a channel, channels last the channels of a position.
Strides count elements: `_N` from sample to sample, `_R` from row to row, `_C` from channel to channel of a parameter
(0: the same value for all).

A kernel is given one list of these, or several, one for each problem: problem q has samples SAMPLE .. SAMPLE + N - 1 of
BATCH, and its partial sums begin at AT. Several have one sample each, whose S may differ.

Of S positions VALID are valid, fewer only where there is a mask: it is read in steps of MASK_N from sample to sample,
MASK_R from row to row, and MASK_C within a row. SPOT_0 .. SPOT_3 are four valid positions, spread over the sample.
Where ROOM is more than S, channels first, y and dx become zero from there to ROOM in each row.
"""

FIELDS = (
    "N", "C", "G", "D", "S", "BATCH", "SAMPLE", "AT", "VALID", "SPOT_0", "SPOT_1", "SPOT_2", "SPOT_3",
    "UNITS", "PART", "PARTS", "SUMS", "RUN", "PIECES", "FIRST", "LAST", "SLOTS", "SLOT", "PITCH",
    "KEEP_M2", "PAST", "DENSE", "ROW", "ROOM",
    "X_N", "X_R", "SKIP_N", "SKIP_R", "RES_N", "RES_R", "Y_N", "Y_R", "DY_N", "DY_R", "DRES_N", "DRES_R",
    "MASK_N", "MASK_R", "MASK_C", "W_N", "W_C", "B_N", "B_C",
)  # fmt: skip

FIELD_COUNT, SPOT_0 = len(FIELDS), FIELDS.index("SPOT_0")

# The memory layouts that have loops of their own; the third is a case of the first in the backward pass: one position,
# and parameters that all samples share.
CHANNELS_FIRST, CHANNELS_LAST, SINGLE_POSITION = 0, 1, 2

# Channels last, fewer than these must lie without gaps from position to position.
FEW_CHANNELS = 64
# Channels first, fewer than these must lie without gaps from channel to channel: a vector belongs to two at most.
FEW_POSITIONS = 16

# The phases: a whole block at once, or every block's parts, then every block's statistics, then every block's pieces.
WHOLE, SUM, SETTLE, WRITE = range(4)
