// Grad-weight on matrix units (Lanes::kMatrix): the sums of 16 positions x 16 output channels.
//
// Tile A holds the pixels of 16 positions, copied from wherever they lie, tile B the gradients of
// the 16 output channels, whose pixels are paired once for all positions.
#pragma once

#include "cpu/isa/ahead.h"
#include "cpu/isa/matrix_unit.h"
#include "cpu/isa/pack.h"

namespace dsr::cpu::DSR_ISA {

struct GradTilesJob {
  const BFloat16* packed;  // the first pixel in packed channel 0
  const int32_t* offsets;  // of the group's positions
  const BFloat16* grads;   // tiles B: [chunks][16 pairs of pixels][16 channels][2]
  int64_t chunks;          // of 32 pixels
  float* sums;             // [positions][16]
};

// The pixels of T times 16 positions at one chunk: T tiles A.
template <int T>
DSR_INLINE void copy_pixels(const BFloat16* packed, const int32_t* offsets, BFloat16* to) {
  DSR_UNROLL for (int j = 0; j < T * kTileRows; ++j)
      store_pairs(to + j * kTileDepth, load_pairs(packed + offsets[j]));
}

template <int T, typename Unit>
static void add_grad_tiles(Unit& unit, const GradTilesJob& job) {
  alignas(kAlignment) BFloat16 pixels[2][T * kTileHalves];
  unit.template load<0>(job.sums, kTileRowBytes);
  if constexpr (T > 1) unit.template load<1>(job.sums + kTileSums, kTileRowBytes);
  if constexpr (T > 2) unit.template load<2>(job.sums + 2 * kTileSums, kTileRowBytes);
  if constexpr (T > 3) unit.template load<3>(job.sums + 3 * kTileSums, kTileRowBytes);
  copy_pixels<T>(job.packed, job.offsets, pixels[0]);
#pragma GCC unroll 1
  for (int64_t i = 0; i < job.chunks; ++i) {
    if (i + 1 < job.chunks)
      copy_pixels<T>(job.packed + (i + 1) * kTileDepth, job.offsets, pixels[(i + 1) % 2]);
    const BFloat16* of_chunk = pixels[i % 2];
    unit.template load<6>(job.grads + i * kTileHalves, kTileRowBytes);
    unit.template load<4>(of_chunk, kTileRowBytes);
    unit.template multiply<0, 4, 6>();
    if constexpr (T > 1) {
      unit.template load<5>(of_chunk + kTileHalves, kTileRowBytes);
      unit.template multiply<1, 5, 6>();
    }
    if constexpr (T > 2) {
      unit.template load<4>(of_chunk + 2 * kTileHalves, kTileRowBytes);
      unit.template multiply<2, 4, 6>();
    }
    if constexpr (T > 3) {
      unit.template load<5>(of_chunk + 3 * kTileHalves, kTileRowBytes);
      unit.template multiply<3, 5, 6>();
    }
  }
  unit.template store<0>(job.sums, kTileRowBytes);
  if constexpr (T > 1) unit.template store<1>(job.sums + kTileSums, kTileRowBytes);
  if constexpr (T > 2) unit.template store<2>(job.sums + 2 * kTileSums, kTileRowBytes);
  if constexpr (T > 3) unit.template store<3>(job.sums + 3 * kTileSums, kTileRowBytes);
}

constexpr int kGradTiles = 4;  // of sums at once: as many products as hide the latency of one

// Up to kGradTiles times 16 positions. The last one stands for those that are missing.
template <typename Unit>
static void add_grads_at_once(Unit& unit, GradTilesJob job, int32_t count) {
  int32_t offsets[kGradTiles * kTileRows];
  alignas(kAlignment) float sums[kGradTiles * kTileSums];
  const auto tiles = static_cast<int32_t>(ceil_div(count, kTileRows));
  float* to = job.sums;
  const bool whole = count == tiles * kTileRows;
  if (!whole) {
    for (int i = 0; i < tiles * kTileRows; ++i) offsets[i] = job.offsets[i < count ? i : count - 1];
    std::memcpy(sums, to, count * kTileRowBytes);
    zero(sums + count * kTileRows, (tiles * kTileRows - count) * kTileRows);
    job.offsets = offsets;
    job.sums = sums;
  }
  if (tiles == 1) add_grad_tiles<1>(unit, job);
  if (tiles == 2) add_grad_tiles<2>(unit, job);
  if (tiles == 3) add_grad_tiles<3>(unit, job);
  if (tiles == 4) add_grad_tiles<4>(unit, job);
  if (!whole) std::memcpy(to, sums, count * kTileRowBytes);
}

// `count` positions of one block of output channels, in even turns.
template <typename Unit>
static void add_grads(Unit& unit, GradTilesJob job, int32_t count) {
  const auto tiles = static_cast<int32_t>(ceil_div(count, kTileRows));
  const auto turns = static_cast<int32_t>(ceil_div(tiles, kGradTiles));
  for (int32_t t = 0, done = 0; t < turns; ++t) {
    const int32_t end = tiles * (t + 1) / turns * kTileRows;
    const int32_t positions = (end < count ? end : count) - done;
    add_grads_at_once(unit, job, positions);
    job.offsets += positions;
    job.sums += int64_t{positions} * kTileRows;
    done += positions;
  }
}

template <typename TileUnit>
class GradMatrix {
 public:
  GradMatrix(const GradWeightArgs<float>& args, char* workspace)
      : args_(args), plan_(*args.plan), grad_layout_(*args.grad_layout) {
    packed_ = part(&workspace, packed_bytes(plan_, plan_.source, sizeof(float)));
    packed_grad_ = part(&workspace, packed_bytes(plan_, grad_layout_, sizeof(float)));
    grads_ = part(&workspace, grad_tiles_bytes(plan_, grad_layout_));
  }

  // Adds the share of one unit to the sums of output channels [first, last).
  // `next` is the unit after this one, to be fetched ahead, or null.
  void run(const Unit& unit, const Unit* next, int64_t first, int64_t last, float* sums) {
    ahead_ = ahead_grad_ = Ahead();
    if (next) {
      ahead_ = Ahead(args_.x, plan_.source, *next, plan_.rows());
      ahead_grad_ = Ahead(args_.grad, grad_layout_, *next, plan_.rows());
    }
    pack_plane_in_bfloat16(args_.x, plan_.source, unit, packed_);
    pack_plane_in_bfloat16(args_.grad, grad_layout_, unit, packed_grad_);
    const int64_t elements =
        ((unit.images - 1) * plan_.source.image_rows + unit.rows - 1) * plan_.source.pitch +
        plan_.destination.classes[0].cols;
    const int64_t chunks = ceil_div(elements, kTileDepth);
    for (int64_t o = first; o < last; o += kTileRows) {
      ahead_.step();
      ahead_grad_.step();
      pair_pixels(o, chunks);
      for (int64_t b = 0; b < plan_.block.count; ++b) {
        const int32_t* bounds = plan_.segments(0, b, o);
        add_grads(tile_unit_,
                  GradTilesJob{.packed = packed_,
                               .offsets = plan_.offsets.data() + bounds[0],
                               .grads = grads_,
                               .chunks = chunks,
                               .sums = sums + int64_t{bounds[0]} * kTileRows},
                  bounds[1] - bounds[0]);
      }
    }
  }

 private:
  static BFloat16* part(char** workspace, int64_t bytes) {
    return reinterpret_cast<BFloat16*>(cut_part(workspace, bytes));
  }

  // The gradients of 16 channels from o on, as tiles B.
  void pair_pixels(int64_t o, int64_t chunks) {
    constexpr int V = kLanes<float>;
    const BFloat16* from = packed_grad_ + o * grad_layout_.plane;
    for (int64_t i = 0; i < chunks; ++i)
      for (int r = 0; r < kTileRows; r += V)
        for (int c = 0; c < kTileRows; c += V) {
          Vec<float> square[V];
          DSR_UNROLL for (int j = 0; j < V; ++j) square[j] =
              load_bits(from + (c + j) * grad_layout_.plane + i * kTileDepth + 2 * r);
          transpose<float>(square);
          DSR_UNROLL for (int j = 0; j < V; ++j)
              store_bits(grads_ + i * kTileHalves + (r + j) * kTileDepth + 2 * c, square[j]);
        }
  }
  // Pairs of bfloat16, in the lanes of a vector.
  static Vec<float> load_bits(const BFloat16* from) {
    Vec<float> v;
    std::memcpy(&v, from, sizeof(v));
    return v;
  }
  static void store_bits(BFloat16* to, Vec<float> v) { std::memcpy(to, &v, sizeof(v)); }

  const GradWeightArgs<float>& args_;
  const GatherPlan& plan_;
  const PackLayout& grad_layout_;
  TileUnit tile_unit_;
  BFloat16* packed_;
  BFloat16* packed_grad_;
  BFloat16* grads_;  // tiles B of one block of output channels
  Ahead ahead_, ahead_grad_;
};

}  // namespace dsr::cpu::DSR_ISA
