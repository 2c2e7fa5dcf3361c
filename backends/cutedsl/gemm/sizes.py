"""Sizes that the hardware and the format fix, and those of every kernel's buffers."""

from nvfp4.backends.cutedsl.gemm.config import CTA_ROWS, STAGE_K
from nvfp4.spec.format import BLOCK
from nvfp4.spec.grouped import MAX_EXPERTS
from nvfp4.spec.swizzle import TILE_BLOCKS, TILE_ROWS

MMA_K = BLOCK * TILE_BLOCKS  # 64: an MMA reads a scale tile of each operand
K_BLOCKS = STAGE_K // MMA_K
ROW_BYTES = STAGE_K // 2
SCALE_ROWS = TILE_ROWS
SCALE_TILE = TILE_ROWS * TILE_BLOCKS
SCALE_WORDS = SCALE_TILE // 8  # TMA's elements of a scale tile: a box has at most 256
SCALE_LANES = 32  # a scale tile is 32 lanes of 16 bytes, which hold 4 rows 32 apart
SHARED_BYTES = 232448  # what sm_100 lets one CTA have
HALF_SHARED_BYTES = 228 * 1024 // 2 - 1024  # half of an SM's, less what CUDA keeps of each CTA's
TMEM_COLUMNS = 512
STORE_BYTES = 128  # of a row that the epilogue moves at a time
WARP_ROWS = 32
GLU_SUBTILE = 64  # results: 32 bytes of codes a row, and one word of scales, by two warps
GLU_WARPS = 8  # with 4, its arithmetic would take longer than the MMAs of K = 2048 (choose.py)
EXPERTS_A_LANE = MAX_EXPERTS // 32
TABLE_BYTES = 4 * (32 + MAX_EXPERTS + MAX_EXPERTS + 2)  # see groups.py
WARPS_OF_ROWS = CTA_ROWS // WARP_ROWS  # warp w reaches rows 32 (w % 4) and on of tensor memory
