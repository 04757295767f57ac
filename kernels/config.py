"""Block sizes as plain functions of the shape and the target: nothing here asks a device."""

from __future__ import annotations

from functools import lru_cache
from math import gcd
from typing import NamedTuple

MAX_THREADS = 1024  # per program, on every target
PROGRAMS = 128  # among which a weight is shared, if each gets FEWEST_ROWS
FEWEST_ROWS = 2
PERSISTENT_PROGRAMS = 132  # one for each multiprocessor of an H100
TILE_BYTES = 65536  # of accumulators: 128 for each of 512 threads
WIDEST_ROW = 16384  # elements of a plain float32 row that one program can hold on chip
SUMS_BYTES = 4096  # of shared memory that a program's sums take beside the tiles in flight
SECTOR = 8  # float32 elements of the 32 bytes that memory moves at a time
LINE = 32  # float32 elements of a line of a cache

SMALL = 16384  # float32 elements that one program takes in one launch

ELEMENTWISE_BLOCK = 4096
DOT_BLOCK = 4096
DOT_PROGRAMS = 256
FOREACH_ROWS = 32  # of a block of ELEMENTWISE_BLOCK, where memory is rows
VECTOR_BLOCK = 256
SHARE_COLUMNS = 64  # of s, summed by one program
SHARE_ROWS = 32  # shares of s taken at a time: each time waits for memory

SCALING_BLOCK = 4096  # elements of rows that one program scales, if rows are shorter
FEWEST_SCALED = 1024  # of them, where there are less than PROGRAMS otherwise
SCALING_PARTS = 256  # into which the sums over few long rows are split
TOGETHER_BLOCK = 4096  # float32 elements of a tile for many weights: 16 for each thread
TOGETHER_THREADS = 256
NARROW_ROWS = 64  # in a tile for many weights, if that is all of them
LONGEST_TOGETHER = 65536  # elements of one program that do not outlast the other weights


class SmallTile(NamedTuple):
    """A tile that holds the whole matrix."""

    BLOCK_M: int
    BLOCK_N: int
    num_warps: int


class RowTile(NamedTuple):
    """A tile of R rows by BLOCK_N columns, the programs that share the tiles, and their warps."""

    R: int
    BLOCK_N: int
    programs: int
    num_warps: int
    STAGES: int = 1  # tiles of a program in flight: those before the last wait in shared memory


def ceil_div(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


@lru_cache(maxsize=4096)
def hidden_factor(n: int) -> int:
    """The largest power of two that divides ``n``; 1 for multiples of 16, which Triton sees."""
    return gcd(n, 16) % 16 or 1


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n``, for ``n`` of 1 or more."""
    return 1 << (n - 1).bit_length()


def last_power_of_two(n: int) -> int:
    """The largest power of two up to ``n``; 0 for 0."""
    return 1 << n.bit_length() >> 1


def warps(elements: int, itemsize: int, warp_size: int) -> int:
    """Warps that give each thread about 64 bytes of ``elements`` accumulators of ``itemsize``."""
    threads = min(MAX_THREADS, max(128, next_power_of_two(elements * itemsize // 64)))
    return threads // warp_size


def finish_block(itemsize: int) -> int:
    """Elements of W at a time where an iteration or an estimate ends: 64 bytes for each thread.

    Of no more threads than VECTOR_BLOCK: more would read an element of u or v twice, the other time
    perhaps when another thread has overwritten it.
    """
    return ELEMENTWISE_BLOCK * 4 // itemsize


def holds_whole_rows(P: int, Q: int, K: int, itemsize: int) -> bool:
    """Whether ``power_rows`` takes the shape: rows fit on chip, and their runs fill a sector.

    The indices of rows in several runs, or with permuted columns, take registers too, and float64
    twice as many for data, indices and arithmetic alike.
    """
    widest = WIDEST_ROW // (1 if P == 1 else 4) // (1 if K == 1 else 2) // (itemsize // 4) ** 2
    return widest >= P * Q and (P == 1 or Q >= SECTOR)


@lru_cache(maxsize=4096)
def small_tile(M: int, N: int, itemsize: int, warp_size: int) -> SmallTile | None:
    """The tile of the one-launch kernels; None for a weight that is too large for one program."""
    block_m, block_n = next_power_of_two(M), max(16, next_power_of_two(N))
    elements = block_m * block_n * (itemsize // 4) ** 2
    if elements > SMALL:
        return None
    return SmallTile(block_m, block_n, min(256, max(128, elements // 16)) // warp_size)


def threads_along(columns: int) -> int:
    """Threads that stand along a row, a piece of 8 elements each.

    Were they more, they would stand along several rows, and sums over rows would go through shared
    memory, most of whose accesses meet in one bank: up to seven times the time of the kernel.
    """
    return max(64, min(512, columns // 8))


def row_tile(
    M: int,
    N: int,
    itemsize: int,
    weight_itemsize: int,
    warp_size: int,
    shared_memory: int,
    max_programs: int,
) -> RowTile:
    """The tile of ``power_rows``: whole rows, persistent programs; the accumulator's itemsize.

    A program's share of s is as large as a row, and all shares are read again: programs are few.
    """
    block_n = max(16, next_power_of_two(N))
    threads = threads_along(block_n)
    most = max(1, min(TILE_BYTES, 256 * threads) // itemsize // block_n)
    rows = min(most, max(FEWEST_ROWS, last_power_of_two(M // PROGRAMS)))
    tiles = ceil_div(M, rows)
    at_once = PERSISTENT_PROGRAMS * (1 if threads > 256 else 2)
    rounds = ceil_div(tiles, min(at_once, max_programs))
    is_staged = rounds > 2 and 2 * rows * block_n * weight_itemsize + SUMS_BYTES <= shared_memory
    stages = 3 if is_staged else 1
    return RowTile(rows, block_n, ceil_div(tiles, rounds), threads // warp_size, stages)


def chunk_tile(M: int, N: int, Q: int, itemsize: int, warp_size: int) -> RowTile:
    """The tile of ``power_chunked`` and ``estimate``: one row block a program, columns in chunks.

    Rows are neighbours where runs are short, so that SECTOR of them fill a sector; elsewhere they
    are fewer, down to FEWEST_ROWS, where there would be less than PROGRAMS.
    """
    few = min(4, max(FEWEST_ROWS, last_power_of_two(M // PROGRAMS)))
    rows = SECTOR if Q < SECTOR else few
    block_n = min(max(512, next_power_of_two(N)), TILE_BYTES // itemsize // rows)
    threads = max(64, rows * block_n * itemsize // 128)
    return RowTile(rows, block_n, ceil_div(M, rows), threads // warp_size)


def foreach_tile(itemsize: int, warp_size: int) -> RowTile:
    """The tile of ``foreach_power``, for every layer: a quarter of what fits."""
    rows = 4
    block_n = TILE_BYTES // 4 // itemsize // rows
    return RowTile(rows, block_n, 1, threads_along(block_n) // warp_size)


def apply_tile(rows: int, columns: int, itemsize: int, warp_size: int) -> RowTile:
    """The tile of ``grad_apply`` over memory as ``rows`` by ``columns``."""
    block_n = min(1024, max(16, next_power_of_two(columns)))
    tile_rows = min(4096 // block_n, next_power_of_two(rows))
    programs = ceil_div(rows, tile_rows) * ceil_div(columns, block_n)
    return RowTile(tile_rows, block_n, programs, warps(tile_rows * block_n, itemsize, warp_size))


def rows_side_by_side(P: int, Q: int) -> int:
    """The rows that a program takes at least, so that short runs fill sectors; lines, if Q = 1."""
    if Q == 1:
        return LINE
    return SECTOR if P > 1 and Q < SECTOR else 1


def scaling_tile(P: int, M: int, Q: int, itemsize: int, warp_size: int) -> RowTile:
    """The tile of rows that are scaled to a norm: whole rows where they fit on chip, or chunks.

    Chunks are half of what fits: addresses of two loops more take registers too.
    """
    side_by_side = min(rows_side_by_side(P, Q), next_power_of_two(M))
    widest = WIDEST_ROW // (itemsize // 4) ** 2 // side_by_side
    block_n = next_power_of_two(P * Q)
    block_n = block_n if block_n <= widest else widest // 2
    rows = max(FEWEST_SCALED // block_n, last_power_of_two(M // PROGRAMS))
    rows = max(side_by_side, min(rows, SCALING_BLOCK // block_n, next_power_of_two(M)))
    threads = min(512, warps(rows * block_n, itemsize, warp_size) * warp_size)
    return RowTile(rows, block_n, ceil_div(M, rows), threads // warp_size)


def is_split(tile: RowTile, N: int) -> bool:
    """Whether rows are so few and so long that several programs share each of them."""
    return tile.BLOCK_N < N and tile.programs < PROGRAMS


def split_tile(P: int, M: int, Q: int, itemsize: int, warp_size: int) -> RowTile:
    """The tile of rows that programs share, and the programs that sum: as many for each row block.

    Every program of the launch after them reads all sums over its rows: they are few.
    """
    rows = min(rows_side_by_side(P, Q), next_power_of_two(M))
    block_n, row_blocks = SCALING_BLOCK // rows, ceil_div(M, rows)
    parts = min(ceil_div(P * Q, block_n), ceil_div(SCALING_PARTS, row_blocks))
    return RowTile(rows, block_n, row_blocks * parts, warps(SCALING_BLOCK, itemsize, warp_size))


def together_block(itemsize: int) -> int:
    """Elements of a tile of rows of one weight among many, of an accumulator's itemsize."""
    return TOGETHER_BLOCK // (itemsize // 4) ** 2


def together_rows(N: int, Q: int, is_wide: bool, itemsize: int) -> int:
    """The rows of that tile: ``foreach_scale_rows`` chooses alike.

    ``is_wide`` says that runs of Q are read in 16 bytes at a time. Others are read by rows side by
    side, however long: what their addresses take leaves room for no other way.
    """
    block = together_block(itemsize)
    if Q == 1:
        return LINE
    if not is_wide:
        return NARROW_ROWS if block // NARROW_ROWS >= N else SECTOR
    choices = (NARROW_ROWS, SECTOR, 4, 2) if N == Q else (SECTOR,)
    return next((rows for rows in choices if block // rows >= N), 1)


def outlasts(M: int, N: int, rows: int) -> bool:
    """Whether few programs of ``rows`` would walk along them when all other weights are done."""
    return rows * N > LONGEST_TOGETHER and ceil_div(M, rows) < PROGRAMS
