// One launcher per element type, each instantiated in a file of its own so that they build in
// parallel.
#pragma once

#include <algorithm>
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

template <class T, int Units>
Status launch_window_gather(Queue queue, const Gather& pass, const WindowList& list,
                            const WindowGatherArguments& with) {
  static constexpr const char* kOp = "window_gather";
  const int bytes = kSlabs * pass.slab_bytes + kComputeWarps * kTileBytes;
  const Status enough =
      with.maps == nullptr
          ? allow_shared_bytes<&window_gather_kernel<T, Units>>(queue, bytes, kOp)
          : allow_shared_bytes<&fused_window_gather_kernel<T, Units>>(queue, bytes, kOp);
  if (!enough.is_ok()) return enough;
  const int row_block = pass.row_warps * kWindowRows;
  const int64_t items = static_cast<int64_t>(pass.tiles) * pass.groups *
                        ((pass.dest_channels + row_block - 1) / row_block);
  if (items > INT32_MAX / 2)
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

// The kernel of the pass's units: variant kIndex of those there are, or a later one.
template <class T, int kIndex = 0>
Status launch_window_variant(Queue queue, const Gather& pass, const WindowList& list,
                             const WindowGatherArguments& with) {
  if constexpr (kIndex == kWindowUnits.size()) {
    return Status::error("window_gather: no kernel of " + std::to_string(pass.rows) + " rows and " +
                         std::to_string(pass.units) + " units");
  } else {
    constexpr int kUnits = kWindowUnits[kIndex];
    if (pass.rows == kWindowRows && pass.units == kUnits)
      return launch_window_gather<T, kUnits>(queue, pass, list, with);
    return launch_window_variant<T, kIndex + 1>(queue, pass, list, with);
  }
}

// Defined in instances/, for each T.
template <class T>
Status window_gather_of(Queue queue, const Gather& pass, const WindowList& list,
                        const WindowGatherArguments& with);

}  // namespace dsr::cuda
