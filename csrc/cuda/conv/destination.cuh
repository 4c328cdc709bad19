// Where a lane's sums go, and how they are stored there.
#pragma once

#include "cuda/conv/gather.h"
#include "cuda/conv/slab.cuh"

namespace dsr::cuda {

// The same number, of which the compiler does not know that it is: what is computed from it is
// computed there, and not kept since it was before.
__device__ __forceinline__ int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// Where the destination has a position of a channel, counted from `dest`, a pointer or an index,
// and how many of the lane's images there are.
template <class At>
struct Destination {
  At at;
  int images;
};

template <class Config, class At>
__device__ __forceinline__ Destination<At> destination_of(const Gather& pass, const GatherClass& c,
                                                          const Position& p, int64_t channel,
                                                          At dest) {
  const int h = c.dest_h + p.row * pass.dest_step_h;
  const int w = c.dest_w + (p.chunk * c.slab.tile_cols + p.col) * pass.dest_step_w;
  const int first_image = p.group * Config::kVector + Config::first_image();
  const int images = Config::images(c.slab.images - p.group * Config::kVector);
  const Strides4& strides = pass.dest_strides;
  dest = dest + first_image * strides.n + channel * strides.c + h * strides.h + w * strides.w;
  return {dest, images};
}

// Where a lane's sums of one channel go: to the first images[u] images of each position u, which
// begin at(u) elements from where the destination does.
template <class Config>
struct Row {
  int64_t first[Config::kUnits];
  int images[Config::kUnits];
  int64_t image_stride;

  __device__ __forceinline__ int64_t at(int unit) const { return first[unit]; }
  __device__ __forceinline__ int images_of(int unit) const { return images[unit]; }
  __device__ __forceinline__ void set(int unit, int64_t at, int count) {
    first[unit] = at;
    images[unit] = count;
  }
  __device__ __forceinline__ void move(int64_t by) {
#pragma unroll
    for (int u = 0; u < Config::kUnits; ++u) first[u] += by;
  }
};

// The same in fewer registers, of positions that are no more than 2^31 elements apart.
template <class Config>
struct NarrowRow {
  static_assert(Config::kUnits <= 8, "a register has 8 times four bits");
  int64_t first;
  int32_t apart[Config::kUnits];
  uint32_t images;  // four bits each
  int64_t image_stride;

  __device__ __forceinline__ int64_t at(int unit) const { return first + apart[unit]; }
  __device__ __forceinline__ int images_of(int unit) const { return images >> (4 * unit) & 15u; }
  __device__ __forceinline__ void set(int unit, int64_t at, uint32_t count) {
    if (unit == 0) first = at, images = 0;
    apart[unit] = static_cast<int32_t>(at - first);
    images |= count << (4 * unit);
  }
  __device__ __forceinline__ void move(int64_t by) { first += by; }
};

template <class Config>
__device__ __forceinline__ typename Config::Row row_of(const Gather& pass, int which,
                                                       int my_position, int64_t channel) {
  typename Config::Row row;
  row.image_stride = pass.dest_strides.n;
  const GatherClass& c = pass.classes[which];
  Position p;
#pragma unroll
  for (int u = 0; u < Config::kUnits; ++u) {
    const int position = my_position + u * Config::kPositionStep;
    p = u == 0 || Config::kPositionStep != 1 ? position_at(c.slab, position)
                                             : position_after(c.slab, p, position);
    const auto d = destination_of<Config>(pass, c, p, channel, int64_t{0});
    row.set(u, d.at, p.valid ? d.images : 0);
  }
  return row;
}

// What is stored of a row: where positions come in runs, all of an image at a time, several
// positions at once; else each element by itself.
template <class Config, class T>
struct Stores {
  using Row = typename Config::Row;
  T* __restrict__ dest;
  int run;
  T kept[Config::kRuns ? Config::kUnits : 1];

  // Calls use(unit, image) for every sum of a row, in the order in which they are to be stored.
  template <class Use>
  __device__ __forceinline__ void each(const Row& row, const Use& use) {
    if constexpr (Config::kRuns) {
#pragma unroll
      for (int n = 0; n < Config::kImages; ++n) {
#pragma unroll
        for (int u = 0; u < Config::kUnits; ++u) use(u, n);
        put_image(row, n);
      }
    } else {
#pragma unroll
      for (int u = 0; u < Config::kUnits; ++u) {
#pragma unroll
        for (int n = 0; n < Config::kImages; ++n) use(u, n);
      }
    }
  }

  __device__ __forceinline__ void put(int64_t offset, int unit, T element) {
    if constexpr (Config::kRuns) {
      kept[unit] = element;
    } else {
      dest[offset] = element;
    }
  }

  __device__ __forceinline__ void put_image(const Row& row, int n) {
    constexpr int kSize = sizeof(T);
    if (run == 16 / kSize) {
      put_runs<uint4>(row, n);
    } else if (run == 8 / kSize) {
      put_runs<uint2>(row, n);
    } else if (kSize < 4 && run == 4 / kSize) {
      put_runs<uint32_t>(row, n);
    } else {
      put_runs<T>(row, n);
    }
  }

  // Positions of a run are there together or not at all.
  template <class Packed>
  __device__ __forceinline__ void put_runs(const Row& row, int n) {
    constexpr int kRun = sizeof(Packed) / sizeof(T);
#pragma unroll
    for (int u = 0; u + kRun <= Config::kUnits; u += kRun) {
      if (n >= row.images_of(u)) continue;
      Packed packed;
      memcpy(&packed, kept + u, sizeof(packed));
      *reinterpret_cast<Packed*>(dest + row.at(u) + n * row.image_stride) = packed;
    }
  }
};

}  // namespace dsr::cuda
