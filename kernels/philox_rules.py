"""Random numbers without a state, Philox4x32-10, and rounding by them, on Triton's blocks: as
csrc/rules/philox.h has it, bit for bit."""

import triton
import triton.language as tl


@triton.jit
def words(seed, stream, block):
    """block: [lines, blocks], int64. A word for each of the elements 4 * block to 4 * block + 3, beside each
    other: [lines, 4 * blocks]."""
    low, high = block.to(tl.uint32), (block >> 32).to(tl.uint32)
    zero = tl.zeros_like(low)
    a, b, c, d = tl.philox(seed, low, high, zero + stream, zero)
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (block.shape[0], 4 * block.shape[1]))


@triton.jit
def rounded_by_chance(v, word):
    """v to a whole number next to it: up with the probability of what lies above the lower one, so that the
    mean is v. 24 bits of the word decide; a whole v stays what it is."""
    below = tl.floor(v)
    chance = (word >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-8  # 2^-24
    return below + (chance < v - below).to(tl.float32)
