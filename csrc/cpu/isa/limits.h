// What each instruction set can: the one place for widths, registers and limits.
//
// Plans are built for the instruction set that runs and read kernels().limits; kernels read
// kLimits, of the one they are compiled for. Both are one of the constants below.
#pragma once

#include <cstdint>

namespace dsr::cpu {

// ---- of the processor, whatever the instruction set ----

inline constexpr int kCacheLine = 64;                   // bytes
inline constexpr int kCacheSets = 64, kCacheWays = 10;  // of L1, as the model of its lines has it
inline constexpr int kAlignment = 64;  // bytes: a cache line, and the widest vector

// ---- what every kernel keeps to ----

inline constexpr int kMaxLanes = kAlignment / 4;          // float32 in the widest vector
inline constexpr int kMaxTileElements = 512;              // scalars of the widest tile
inline constexpr int kMaxTileRows = 4, kMaxTileCols = 8;  // of tiles with more than one row
// Lanes::kRow: vectors of a packed row; strides; and what follows for the tables of a plan and the
// frames of a table (a turn moves lanes by less than a vector).
inline constexpr int kRowVectors[] = {1, 2, 4}, kMaxRowVectors = 4;
inline constexpr int kMaxRowStrideH = 4, kMaxRowStrideW = 2;
inline constexpr int kMaxTables = kMaxRowStrideH * kMaxRowStrideW;
inline constexpr int kMaxFrames = kMaxLanes;
// Rows of the pattern that share their positions and that the inner loops take at once.
inline constexpr int kBlockRows = 4;
// Lanes::kMatrix: rows of a matrix unit's tile, that is output channels of a block and pixels of
// its sums; the pixels that two tiles of sums take; and source channels, or positions, of a
// product.
inline constexpr int kMatrixRows = 16, kMatrixPixels = 32, kMatrixDepth = 32;
// Readable scalars behind every packed buffer: a packed row.
inline constexpr int kSlack = kMaxLanes * kMaxRowVectors;

// ---- what an instruction set says of itself ----

// What multiplies tiles of bfloat16: nothing, AVX512-BF16's dot products of pairs, AMX.
enum class MatrixUnit { kNone, kDotProducts, kAmx };

struct Limits {
  int vector_bytes;  // of a register
  MatrixUnit matrix_unit = MatrixUnit::kNone;
  bool masks_lanes;  // multiply-adds can leave lanes out at no cost: what Lanes::kRow wants
  // How many vectors fit the registers, after what the inner loop itself needs:
  int tile_vectors;       // sums of a tile; beside an operand and a value
  int row_tile_vectors;   // the same in Lanes::kRow; beside masks and what a turn needs too
  int grad_tile_vectors;  // a tile of the output gradient; beside an operand and partial sums
  int block_vectors;      // sums in each of kBlockRows rows; beside an operand and their values
  int chains;             // multiply-adds in flight that fill the units, for the measured peak

  constexpr int lanes(int element_size) const { return vector_bytes / element_size; }
  // Lanes::kRow: the widest image, in pixels, and how far taps may be apart, in columns.
  constexpr int row_pixels() const { return kMaxRowVectors * lanes(4); }
  constexpr int turn() const { return lanes(4) - 1; }
};

// Named as in DSR_ISA. Constants of internal linkage, so that no build exports them.
namespace limits {

// What GCC and clang make of 16-byte vectors anywhere: SSE2 has 16 registers, NEON 32.
constexpr Limits portable{.vector_bytes = 16,
                          .masks_lanes = false,
                          .tile_vectors = 12,
                          .row_tile_vectors = 10,
                          .grad_tile_vectors = 10,
                          .block_vectors = 2,
                          .chains = 12};
// 16 registers.
constexpr Limits avx2{.vector_bytes = 32,
                      .masks_lanes = false,
                      .tile_vectors = 14,
                      .row_tile_vectors = 12,
                      .grad_tile_vectors = 12,
                      .block_vectors = 2,
                      .chains = 12};
// 32 registers.
constexpr Limits avx512{.vector_bytes = 64,
                        .masks_lanes = true,
                        .tile_vectors = 28,
                        .row_tile_vectors = 20,
                        .grad_tile_vectors = 24,
                        .block_vectors = 6,
                        .chains = 24};

}  // namespace limits
}  // namespace dsr::cpu

#if defined(DSR_ISA)
namespace dsr::cpu::DSR_ISA {

constexpr Limits kLimits = limits::DSR_ISA;
static_assert(kLimits.vector_bytes <= kAlignment, "packed buffers are aligned for every vector");
static_assert(kLimits.tile_vectors * kLimits.lanes(4) <= kMaxTileElements,
              "the stretches of a stored tile are kept in an array of kMaxTileElements");
static_assert(kLimits.tile_vectors <= 32 && kLimits.grad_tile_vectors <= 32,
              "no instruction set has more than 32 vector registers");

constexpr int kVectorBytes = kLimits.vector_bytes;
// Elements of a vector.
template <typename S>
constexpr int kLanes = kLimits.lanes(sizeof(S));

}  // namespace dsr::cpu::DSR_ISA
#endif
