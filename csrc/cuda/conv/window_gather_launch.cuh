// One launcher per element type, each instantiated in a file of its own so that they build in
// parallel.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "cuda/conv/gather_launch.cuh"
#include "cuda/conv/window_gather.cuh"

namespace dsr::cuda {

// The addresses of a pass beside the list; `maps` is null for a plain convolution.
struct WindowGatherArguments {
  const void* source;
  const float* values;
  const float* bias;
  void* dest;
  const GatherMaps* maps;
};

// Values are read four at a time, two or one, as pieces and the address of the first one allow.
inline int chunk_shift_of(const WindowList& list, const float* values) {
  int shift = std::min(list.piece_shift, 2);
  while (reinterpret_cast<uintptr_t>(values) % (sizeof(float) << shift) != 0) --shift;
  return shift;
}

// How many positions from a multiple of it on lie side by side in every channel and image of a
// destination of elements of `size` bytes, at an address that is a multiple of their size: a power
// of two, at most `most`.
inline int run_of(const Gather& pass, const GatherClass& c, const void* dest, size_t size,
                  int most) {
  const Strides4& s = pass.dest_strides;
  // A column of pixels is one line, of positions along its rows.
  const bool column = c.slab.cols == 1;
  const int64_t step = column ? pass.dest_step_h * s.h : pass.dest_step_w * s.w;
  if (step != 1) return 1;
  const int64_t first = c.dest_h * s.h + c.dest_w * s.w;
  const int64_t next_line = column ? 0 : pass.dest_step_h * s.h;
  const int64_t lengths[] = {column ? c.slab.rows : c.slab.cols, column ? 0 : c.slab.tile_cols};
  int run = most;
  const auto fits = [&](int64_t n) { return n % run == 0; };
  while (!(fits(reinterpret_cast<uintptr_t>(dest) / size) && fits(first) && fits(next_line) &&
           fits(s.n) && fits(s.c) && fits(lengths[0]) && fits(lengths[1])))
    run /= 2;
  return run;
}

template <class T, int Units>
Status launch_window_gather(Queue queue, Gather pass, const WindowList& list,
                            const WindowGatherArguments& with) {
  static constexpr const char* kOp = "window_gather";
  for (int i = 0; i < pass.class_count; ++i)
    pass.classes[i].run =
        run_of(pass, pass.classes[i], with.dest, sizeof(T), WindowConfig<T, Units>::kUnits);
  const int bytes = kSlabs * pass.slab_bytes + kComputeWarps * kTileBytes<T>;
  const Status enough =
      with.maps == nullptr
          ? allow_shared_bytes<&window_gather_kernel<T, Units>>(queue, bytes, kOp)
          : allow_shared_bytes<&fused_window_gather_kernel<T, Units>>(queue, bytes, kOp);
  if (!enough.is_ok()) return enough;
  const int row_block = pass.row_warps * kWindowRows;
  const int64_t items = static_cast<int64_t>(pass.tiles) * pass.groups *
                        ((pass.dest_channels + row_block - 1) / row_block);
  if (items > INT32_MAX / 4)
    return Status::error("window_gather: too many tiles (" + shapes_of(pass) + ")");
  const dim3 blocks(static_cast<unsigned>(std::min<int64_t>(items, pass.blocks_limit)));
  const int chunk_shift = chunk_shift_of(list, with.values);
  const auto* source = static_cast<const T*>(with.source);
  auto* dest = static_cast<T*>(with.dest);
  if (with.maps == nullptr) {
    DSR_LAUNCH((window_gather_kernel<T, Units>), blocks, dim3(kThreads), bytes, queue.stream, pass,
               static_cast<int>(items), list, chunk_shift, source, with.values, with.bias, dest);
  } else {
    DSR_LAUNCH((fused_window_gather_kernel<T, Units>), blocks, dim3(kThreads), bytes, queue.stream,
               pass, static_cast<int>(items), *with.maps, list, chunk_shift, source, with.values,
               with.bias, dest);
  }
  return launched(kOp, shapes_of(pass));
}

// Of floats, a warp has pairs of positions 4 apart: 8.
template <class T>
constexpr bool has_window_units(int units) {
  return sizeof(T) == 2 || units == kFloatWindowUnits;
}

// The kernel of the pass's units: variant kIndex of those there are, or a later one.
template <class T, int kIndex = 0>
Status launch_window_variant(Queue queue, const Gather& pass, const WindowList& list,
                             const WindowGatherArguments& with) {
  if constexpr (kIndex == kWindowUnits.size()) {
    return Status::error("window_gather: no kernel of " + std::to_string(pass.rows) + " rows and " +
                         std::to_string(pass.units) + " units");
  } else {
    constexpr int kUnits = kWindowUnits[kIndex];
    if constexpr (has_window_units<T>(kUnits)) {
      if (pass.rows == kWindowRows && pass.units == kUnits)
        return launch_window_gather<T, kUnits>(queue, pass, list, with);
    }
    return launch_window_variant<T, kIndex + 1>(queue, pass, list, with);
  }
}

// Defined in instances/, for each T.
template <class T>
Status window_gather_of(Queue queue, const Gather& pass, const WindowList& list,
                        const WindowGatherArguments& with);

}  // namespace dsr::cuda
